"""Leaves of the region tree: superpixels with mean features and the borders between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from PIL import Image

from engine.proposals.config import TreeConfig
from engine.proposals.patches import normalised_features
from engine.superpixels.boundary import BoundaryConfig
from engine.superpixels.hierarchy import HierarchyConfig, find_regions, merge_into_hierarchy
from engine.superpixels.segmentation import to_unit_rgb
from engine.superpixels.watershed import Arcs

# Twice as fast as the defaults, which were chosen for superpixels that follow human segmentations: features,
# not histograms, tell here what belongs together.
_BOUNDARY = BoundaryConfig(
    colour_scales_px=(1.0, 2.0),
    colour_weights=(1.0, 1.2),
    histogram_scales_px=(),
    lightness_weights=(),
    chroma_weights=(),
    texture_scales_px=(),
    texture_weights=(),
)
_HIERARCHY = HierarchyConfig(cell_side_px=8)

# Features are read at about this many places along the longer side of the image.
_NUM_SAMPLES = 120


class Borders(NamedTuple):
    """Borders between K leaves, both symmetric with a zero diagonal.

    `lengths` float64 (K, K) are pixel sides, 0 if two leaves are no neighbours; `strengths` float64 (K, K)
    are boundary strengths summed over these sides.
    """

    lengths: NDArray[np.float64]
    strengths: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Leaves:
    """K superpixels of an image that was shrunk to (H, W).

    `labels` is int32 (H, W), 0..K-1; `areas` float64 (K,) in pixels; `features` float32 (K, C), the means of
    unit features; `background` float64 (K,), the pixels by which the background's mean feature is weighted;
    `side_pixels` int64 (K, 4), pixels on the top, bottom, left and right side.
    """

    labels: NDArray[np.int32]
    areas: NDArray[np.float64]
    features: NDArray[np.float32]
    borders: Borders
    side_pixels: NDArray[np.int64]
    background: NDArray[np.float64]


def make_leaves(
    features_hwc: NDArray[np.floating] | torch.Tensor,
    image_hwc: NDArray[np.uint8],
    config: TreeConfig,
    seen_background: NDArray[np.bool_] | None = None,
) -> Leaves:
    """Leaves of an RGB image uint8 (H, W, 3) with patch features (h, w, C) of any grid, type and device.

    The background is what lies on the image's sides, or in `seen_background`, bool of any size.
    """
    grid = (features_hwc.shape[0], features_hwc.shape[1])
    flat = normalised_features(features_hwc).cpu().numpy()
    labels, borders = _segment(shrink(image_hwc, config.segment_side_px), config.num_leaves)
    num_leaves = len(borders.lengths)
    sides = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
    side_pixels = np.stack([np.bincount(side, minlength=num_leaves) for side in sides], axis=1)
    background = side_pixels.sum(axis=1).astype(np.float64)
    if seen_background is not None:
        seen = Image.fromarray(seen_background).resize(labels.shape[::-1], Image.Resampling.NEAREST)
        background = np.bincount(labels.ravel(), np.asarray(seen).ravel(), num_leaves)
    return Leaves(
        labels=labels,
        areas=np.bincount(labels.ravel(), minlength=num_leaves).astype(np.float64),
        features=_mean_features(labels, num_leaves, flat, grid),
        borders=borders,
        side_pixels=side_pixels,
        background=background,
    )


def shrink(image_hwc: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """The image with a longer side of at most `side_px`, by the mean of the pixels that fall together."""
    height, width = image_hwc.shape[:2]
    scale = side_px / max(height, width)
    if scale >= 1:
        return image_hwc
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return np.asarray(Image.fromarray(image_hwc).resize(size, Image.Resampling.BOX))


def _segment(image_hwc: NDArray[np.uint8], num_leaves: int) -> tuple[NDArray[np.int32], Borders]:
    """Labels (H, W) of at most `num_leaves` superpixels, and the borders between them."""
    regions, arcs, measures = find_regions(to_unit_rgb(image_hwc), _BOUNDARY, _HIERARCHY, num_leaves)
    hierarchy = merge_into_hierarchy(regions, arcs, measures, _HIERARCHY)
    leaf_of_region = hierarchy.segments_of_regions(num_leaves)
    borders = _sum_borders(arcs, leaf_of_region, int(leaf_of_region.max()) + 1)
    return leaf_of_region[regions], borders


@njit(cache=True)  # type: ignore[untyped-decorator]
def _sum_borders(arcs: Arcs, leaf_of_region: NDArray[np.int32], num_leaves: int) -> Borders:
    """Borders between leaves from the arcs between the regions in them."""
    lengths = np.zeros((num_leaves, num_leaves))
    strengths = np.zeros((num_leaves, num_leaves))
    for arc in range(len(arcs.pairs)):
        first, second = leaf_of_region[arcs.pairs[arc, 0]], leaf_of_region[arcs.pairs[arc, 1]]
        if first != second:
            for row, column in ((first, second), (second, first)):
                lengths[row, column] += arcs.lengths[arc]
                strengths[row, column] += arcs.strengths[arc]
    return Borders(lengths, strengths)


def _mean_features(
    labels: NDArray[np.int32], num_leaves: int, features: NDArray[np.float32], grid: tuple[int, int]
) -> NDArray[np.float32]:
    """Mean features float32 (K, C) of labels (H, W); patches (h * w, C) are interpolated bilinearly."""
    stride = max(max(labels.shape) // _NUM_SAMPLES, 1)
    means: NDArray[np.float32] = _patch_weights(labels, num_leaves, grid, stride) @ features
    return means


@njit(cache=True)  # type: ignore[untyped-decorator]
def _patch_weights(
    labels: NDArray[np.int32], num_leaves: int, grid: tuple[int, int], stride: int
) -> NDArray[np.float32]:
    """Weight of every patch in each leaf's mean, float32 (K, h * w), rows sum to 1.

    Pixels are sampled every `stride` rows and columns. A leaf without a sampled pixel takes its first one in
    reading order.
    """
    height, width = labels.shape
    weights = np.zeros((num_leaves, grid[0] * grid[1]), np.float32)
    counts = np.zeros(num_leaves, np.int64)
    for y in range(stride // 2, height, stride):
        for x in range(stride // 2, width, stride):
            counts[labels[y, x]] += 1
            _add_patches(weights[labels[y, x]], y, x, labels.shape, grid)
    for y in range(height):
        for x in range(width):
            if counts[labels[y, x]] == 0:
                counts[labels[y, x]] = 1
                _add_patches(weights[labels[y, x]], y, x, labels.shape, grid)
    for leaf in range(num_leaves):
        weights[leaf] /= counts[leaf]
    return weights


@njit(cache=True)  # type: ignore[untyped-decorator]
def _add_patches(
    weights: NDArray[np.float32], y: int, x: int, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    """Add a pixel's bilinear weights in a grid of patches, in place; outside of patch centres the nearest."""
    row = min(max((y + 0.5) * grid[0] / size[0] - 0.5, 0.0), grid[0] - 1.0)
    column = min(max((x + 0.5) * grid[1] / size[1] - 0.5, 0.0), grid[1] - 1.0)
    top, left = int(row), int(column)
    down, right = row - top, column - left
    bottom, end = min(top + 1, grid[0] - 1), min(left + 1, grid[1] - 1)
    weights[top * grid[1] + left] += (1 - down) * (1 - right)
    weights[top * grid[1] + end] += (1 - down) * right
    weights[bottom * grid[1] + left] += down * (1 - right)
    weights[bottom * grid[1] + end] += down * right
