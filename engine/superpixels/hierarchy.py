"""The superpixel hierarchy of one image: fine regions and the order in which they merge into one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from engine.errors import ConfigurationError
from engine.superpixels.boundary import BoundaryConfig, boundary_tensor, placing_tensor, to_lab
from engine.superpixels.merging import MergeRule, Regions, merge_regions
from engine.superpixels.watershed import Arcs, flood, measure_arcs

# The finest regions are at least this many times as many as the segments that will be asked for.
_SPARE_REGIONS = 4


@dataclass(frozen=True, kw_only=True)
class HierarchyConfig:
    """How fine the hierarchy starts and what merges first (`merging.MergeRule` has the formula)."""

    cell_side_px: int = 4
    """The finest regions are as many as square cells of this side; smaller cells where more are asked for."""
    floor: float = 0.005
    """Added to every border's strength, so that plain areas merge by size."""
    colour_weight: float = 0.1
    """Weight of the difference of mean colours against the strength of the border."""
    area_scale_px: float = 80.0
    """Regions much smaller than this merge early, whatever their borders."""
    length_power: float = 0.08
    """How much sooner long borders vanish; more saves contour, and recall with it."""

    def __post_init__(self) -> None:
        if self.cell_side_px < 1:
            raise ConfigurationError(f"hierarchy.cell_side_px is at least 1 pixel, got {self.cell_side_px}")
        if self.floor < 0 or self.colour_weight < 0:
            raise ConfigurationError(
                "hierarchy.floor and hierarchy.colour_weight must not be negative, "
                f"got {self.floor} and {self.colour_weight}"
            )
        if self.length_power < 0:
            raise ConfigurationError(f"hierarchy.length_power must not be negative, got {self.length_power}")
        if self.area_scale_px <= 0:
            raise ConfigurationError(f"hierarchy.area_scale_px must be above 0, got {self.area_scale_px}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Hierarchy:
    """Nested segmentations of one image.

    `leaves` is int32 (H, W), the finest labels 0..R-1. `merges` is int32 (R - 1, 2), one step a row: the
    second region joins the first and goes by its number. `heights` is float64 (R - 1,) and never falls.
    """

    leaves: NDArray[np.int32]
    merges: NDArray[np.int32]
    heights: NDArray[np.float64]

    @property
    def num_leaves(self) -> int:
        """Number of regions in the finest segmentation."""
        return len(self.merges) + 1

    def cut_at_count(self, num_segments: int) -> NDArray[np.int32]:
        """Labels (H, W), 0..K-1 in order of first pixels, with K = min(num_segments, num_leaves)."""
        return self._labels_after(max(self.num_leaves - num_segments, 0))

    def cut_at_level(self, level: float) -> NDArray[np.int32]:
        """Labels (H, W), 0..K-1 in order of first pixels, of the regions that are merged up to `level`."""
        return self._labels_after(int(np.searchsorted(self.heights, level, side="right")))

    def contour_map(self) -> NDArray[np.float32]:
        """The ultrametric contour map, float32 (2H - 1, 2W - 1).

        Pixel (y, x) stands at (2y, 2x), and between two pixels the height at which their regions merge, so
        that the borders above a level are those of the cut at that level. Where four pixels meet: the largest
        of the four sides. 0 within regions.

        Source: Arbeláez, CVPRW 2006; Arbeláez, Maire, Fowlkes, Malik, PAMI 2011, section 4.2.
        """
        contours: NDArray[np.float32] = _draw_contours(self.leaves, self.merges, self.heights)
        return contours

    def segments_of_regions(self, num_segments: int) -> NDArray[np.int32]:
        """Segment of each of the R finest regions, int32 (R,), in the cut with `num_segments`.

        Segments are numbered 0..K-1, K = min(num_segments, R), in the order of their smallest region.

        >>> merges = np.array([[0, 2], [1, 3], [0, 1]], np.int32)
        >>> leaves = np.int32([[0, 1, 2, 3]])
        >>> hierarchy = Hierarchy(leaves=leaves, merges=merges, heights=np.float64([1, 2, 3]))
        >>> hierarchy.segments_of_regions(3).tolist()
        [0, 1, 0, 2]
        """
        parents = self._parents_after(max(self.num_leaves - num_segments, 0))
        is_kept = parents == np.arange(self.num_leaves)
        segments: NDArray[np.int32] = (np.cumsum(is_kept, dtype=np.int32) - 1)[parents]
        return segments

    def _labels_after(self, num_merges: int) -> NDArray[np.int32]:
        return number_by_first_pixel(self._parents_after(num_merges)[self.leaves])

    def _parents_after(self, num_merges: int) -> NDArray[np.int64]:
        """The region by which each of the finest regions goes after some merges, int64 (R,)."""
        parents = np.arange(self.num_leaves)
        parents[self.merges[:num_merges, 1]] = self.merges[:num_merges, 0]
        # A kept region is always the smaller number, so that parents are final before they are followed.
        for region in range(self.num_leaves):
            parents[region] = parents[parents[region]]
        return parents


def build_hierarchy(
    image_hwc: NDArray[np.float32],
    boundary: BoundaryConfig,
    config: HierarchyConfig,
    num_segments: int = 1,
) -> Hierarchy:
    """The hierarchy of an sRGB image in [0, 1], float32 (H, W, 3) with H, W >= 1.

    Its finest segmentation has about H W / cell_side_px² regions, and so many more (up to one per pixel) that
    `num_segments` can be reached. The image itself decides everything else: nothing is random.
    """
    leaves, arcs, regions = find_regions(image_hwc, boundary, config, num_segments)
    return merge_into_hierarchy(leaves, arcs, regions, config)


def find_regions(
    image_hwc: NDArray[np.float32],
    boundary: BoundaryConfig,
    config: HierarchyConfig,
    num_segments: int = 1,
) -> tuple[NDArray[np.int32], Arcs, Regions]:
    """The finest segmentation of `build_hierarchy`: labels int32 (H, W), arcs between regions, regions."""
    lab_chw = to_lab(image_hwc)
    tensor = boundary_tensor(lab_chw, boundary)
    cell_side_px = _cell_side(lab_chw.shape[1:], config.cell_side_px, num_segments)
    leaves = flood(placing_tensor(tensor, lab_chw, boundary), cell_side_px)
    return leaves, measure_arcs(leaves, tensor), _measure_regions(leaves, lab_chw)


def merge_into_hierarchy(
    leaves: NDArray[np.int32], arcs: Arcs, regions: Regions, config: HierarchyConfig
) -> Hierarchy:
    """The hierarchy of the regions that `find_regions` returned."""
    rule = MergeRule(config.floor, config.colour_weight, config.area_scale_px, config.length_power)
    merges, heights = merge_regions(arcs, regions, rule)
    return Hierarchy(leaves=leaves, merges=merges, heights=heights)


def number_by_first_pixel(labels: NDArray[np.integer]) -> NDArray[np.int32]:
    """Renumber labels (H, W), integers of any kind, as int32 0..K-1 in the order of their first pixels.

    >>> number_by_first_pixel(np.array([[7, 7, 3], [3, 5, 5]])).tolist()
    [[0, 0, 1], [1, 2, 2]]
    """
    _, first_pixels, compact = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first_pixels), np.int32)
    rank[np.argsort(first_pixels)] = np.arange(len(first_pixels), dtype=np.int32)
    return rank[compact].reshape(labels.shape)


def _cell_side(size: tuple[int, ...], largest: int, num_segments: int) -> int:
    """The largest side up to `largest` for which there are cells enough; 1 if there never are."""
    height, width = size
    for side in range(largest, 1, -1):
        if math.ceil(height / side) * math.ceil(width / side) >= _SPARE_REGIONS * num_segments:
            return side
    return 1


def _measure_regions(labels: NDArray[np.int32], lab_chw: NDArray[np.float32]) -> Regions:
    """Areas and mean colours of the regions of labels (H, W)."""
    flat = labels.ravel()
    areas = np.bincount(flat).astype(np.float64)
    totals = [np.bincount(flat, weights=plane.ravel()) for plane in lab_chw]
    return Regions(areas, np.stack(totals, axis=1) / areas[:, None])


@njit(cache=True)  # type: ignore[untyped-decorator]
def _merge_height(
    first: int,
    second: int,
    parents: NDArray[np.int64],
    steps: NDArray[np.int64],
    heights: NDArray[np.float64],
) -> float:
    """Height at which two regions merge; `steps` says at which step a region was absorbed by its parent."""
    height = 0.0
    while first != second:
        # Steps grow on the way up: whoever is absorbed first climbs, until both have become the same region.
        if steps[first] > steps[second]:
            first, second = second, first
        height = heights[steps[first]]
        first = parents[first]
    return height


@njit(cache=True)  # type: ignore[untyped-decorator]
def _draw_contours(
    leaves: NDArray[np.int32], merges: NDArray[np.int32], heights: NDArray[np.float64]
) -> NDArray[np.float32]:
    """`Hierarchy.contour_map`."""
    height, width = leaves.shape
    contours = np.zeros((2 * height - 1, 2 * width - 1), np.float32)
    parents = np.arange(len(merges) + 1)
    steps = np.full(len(merges) + 1, len(merges))
    for step in range(len(merges)):
        parents[merges[step, 1]] = merges[step, 0]
        steps[merges[step, 1]] = step
    for y in range(height):
        for x in range(width):
            if x + 1 < width:
                contours[2 * y, 2 * x + 1] = _merge_height(
                    leaves[y, x], leaves[y, x + 1], parents, steps, heights
                )
            if y + 1 < height:
                contours[2 * y + 1, 2 * x] = _merge_height(
                    leaves[y, x], leaves[y + 1, x], parents, steps, heights
                )
    for y in range(1, 2 * height - 1, 2):
        for x in range(1, 2 * width - 1, 2):
            contours[y, x] = max(
                contours[y - 1, x], contours[y + 1, x], contours[y, x - 1], contours[y, x + 1]
            )
    return contours
