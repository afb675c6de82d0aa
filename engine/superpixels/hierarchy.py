"""The superpixel hierarchy of one image: the finest regions and the order in which they merge."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from engine.bounds import Bounded, Count, NotNegative, Positive
from engine.superpixels.boundary import BoundaryConfig, boundary_tensor, placing_tensor, to_lab
from engine.superpixels.merging import MergeRule, Regions, merge_regions
from engine.superpixels.watershed import Arcs, flood, measure_arcs

# Minimum ratio of the number of the finest regions to the number of segments requested.
_SPARE_REGIONS = 4


@dataclass(frozen=True, kw_only=True)
class HierarchyConfig(Bounded):
    """Size of the finest regions and the merging criterion (formula: `merging.MergeRule`)."""

    cell_side_px: Count = 4
    """Side of the square cells, one per finest region; smaller if more segments are requested."""
    floor: NotNegative = 0.005
    """Added to every arc's strength, so that plain areas merge by size."""
    colour_weight: NotNegative = 0.1
    """Weight of the difference of mean colours relative to the arc's strength."""
    area_scale_px: Positive = 80.0
    """Regions much smaller than this merge early, however strong their boundaries are."""
    length_power: NotNegative = 0.08
    """How much earlier long arcs vanish; larger values give less contour and lower boundary recall."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Hierarchy:
    """Nested segmentations of one image.

    `leaves` is int32 (H, W), the finest labels 0..R-1. `merges` is int32 (R - 1, 2), one merge per row: the
    first region absorbs the second and keeps its label. `heights` is float64 (R - 1,), in ascending order.
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
        """Labels (H, W), 0..K-1 in order of first pixels, after all merges up to height `level`."""
        return self._labels_after(int(np.searchsorted(self.heights, level, side="right")))

    def segments_of_regions(self, num_segments: int) -> NDArray[np.int32]:
        """Segment of each of the R finest regions, int32 (R,), in the cut with `num_segments`.

        Segments are numbered 0..K-1, K = min(num_segments, R), in the order of their smallest region.

        >>> merges = np.array([[0, 2], [1, 3], [0, 1]], np.int32)
        >>> leaves = np.int32([[0, 1, 2, 3]])
        >>> hierarchy = Hierarchy(leaves=leaves, merges=merges, heights=np.float64([1, 2, 3]))
        >>> hierarchy.segments_of_regions(3).tolist()
        [0, 1, 0, 2]
        """
        num_merges = max(self.num_leaves - num_segments, 0)
        parents = _roots(self.merges[:num_merges], self.num_leaves)
        is_kept = parents == np.arange(self.num_leaves)
        segments: NDArray[np.int32] = (np.cumsum(is_kept, dtype=np.int32) - 1)[parents]
        return segments

    def _labels_after(self, num_merges: int) -> NDArray[np.int32]:
        return number_by_first_pixel(_roots(self.merges[:num_merges], self.num_leaves)[self.leaves])


def build_hierarchy(
    image_hwc: NDArray[np.float32],
    boundary: BoundaryConfig,
    config: HierarchyConfig,
    num_segments: int = 1,
) -> Hierarchy:
    """The hierarchy of an sRGB image in [0, 1], float32 (H, W, 3) with H, W >= 1.

    Its finest segmentation has about H W / cell_side_px² regions, or more (up to one per pixel) if
    `num_segments` requires it. The result is deterministic.
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
    """Renumber integer labels (H, W) as int32 0..K-1 in the order of their first pixels.

    Takes memory in proportion to the range of the labels.

    >>> number_by_first_pixel(np.array([[7, 7, 3], [3, 5, 5]])).tolist()
    [[0, 0, 1], [1, 2, 2]]
    """
    if labels.size == 0:
        return labels.astype(np.int32)
    low = int(labels.min())
    numbered: NDArray[np.int32] = _number(labels.ravel(), low, int(labels.max()) - low + 1)
    return numbered.reshape(labels.shape)


def _cell_side(size: tuple[int, ...], largest: int, num_segments: int) -> int:
    """The largest side up to `largest` that gives enough cells; 1 if none does."""
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
def _roots(merges: NDArray[np.int32], num_leaves: int) -> NDArray[np.int32]:
    """The region of each leaf, (R,), after some merges."""
    roots = np.arange(num_leaves).astype(np.int32)
    for merge in range(len(merges)):
        roots[merges[merge, 1]] = merges[merge, 0]
    # Parents have smaller labels than their children, so one pass in ascending order resolves them all.
    for leaf in range(num_leaves):
        roots[leaf] = roots[roots[leaf]]
    return roots


@njit(cache=True)  # type: ignore[untyped-decorator]
def _number(labels: NDArray[np.integer], low: int, num_values: int) -> NDArray[np.int32]:
    """Numbers (P,) of labels (P,) from `low` on, in order of appearance."""
    number_of = np.full(num_values, -1, np.int32)
    numbers = np.empty(len(labels), np.int32)
    count = 0
    for pixel in range(len(labels)):
        value = labels[pixel] - low
        if number_of[value] < 0:
            number_of[value] = count
            count += 1
        numbers[pixel] = number_of[value]
    return numbers
