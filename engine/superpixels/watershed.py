"""Oriented watershed: the finest regions of an image and the boundary arcs between them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from engine.superpixels.filters import largest_strength

# Quantisation of the flooding: strength e has level _NUM_LEVELS * e / (e + _MIDDLE_STRENGTH), rounded down.
_NUM_LEVELS = 1024
_MIDDLE_STRENGTH = 0.1

# Power of the quadratic form n'Tn that is averaged along an arc: 0.5 is the strength itself, more gives
# weight to the strong parts of an arc.
_ARC_POWER = 0.665

_UNLABELLED, _FRAME = -1, -2

# Shorter arcs, in pixel sides, have no reliable direction.
_MIN_ORIENTED_SIDES = 3


class Arcs(NamedTuple):
    """Boundaries between E pairs of neighbouring regions, ordered by their first pixel.

    `pairs` is int32 (E, 2), smaller label first; `strengths` float64 (E,) are sums over an arc's pixel sides
    and `lengths` float64 (E,) the numbers of these.
    """

    pairs: NDArray[np.int32]
    strengths: NDArray[np.float64]
    lengths: NDArray[np.float64]


def flood(tensor: NDArray[np.float32], cell_side_px: int) -> NDArray[np.int32]:
    """Watershed of a boundary tensor (H, W, 3): int32 labels (H, W), one region per cell of a grid.

    The image is divided into square cells. The weakest pixel of each cell is its marker; ties go to the pixel
    nearest to the centre, then to the first. All markers flood at once, weak pixels before strong ones.
    Regions are 4-connected, follow the boundaries and are as fine as the grid everywhere, even in a constant
    image.

    Source: Machairas et al., "Waterpixels", TIP 2015 (markers); Meyer, "Color image segmentation", 1992.
    """
    strength = largest_strength(tensor)
    levels = (strength * (_NUM_LEVELS / (strength + np.float32(_MIDDLE_STRENGTH)))).astype(np.int32)
    labels: NDArray[np.int32] = _flood_levels(np.minimum(levels, _NUM_LEVELS - 1), cell_side_px)
    return labels


def measure_arcs(labels: NDArray[np.int32], tensor: NDArray[np.float32]) -> Arcs:
    """The arcs between the regions of labels (H, W), with the strengths across them.

    An arc's normal is the normal of the line fitted to the centres of its pixel sides; very short arcs take
    the strongest direction at each pixel.

    Source: Arbeláez, Maire, Fowlkes, Malik, "Contour detection and hierarchical image segmentation",
    PAMI 2011, section 4.1; arcs between regions this small are treated as straight.
    """
    to_right, below, pairs = _number_arcs(labels)
    strengths, lengths = _sum_strengths(to_right, below, tensor, len(pairs))
    return Arcs(pairs, strengths, lengths)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _weakest_pixel(levels: NDArray[np.int32], top: int, left: int, side: int) -> int:
    """Flat index of the weakest pixel of one cell; ties go to the nearest to the centre, then the first."""
    bottom, right = min(top + side, levels.shape[0]), min(left + side, levels.shape[1])
    best_level, best_distance, best_pixel = _NUM_LEVELS, 0, -1
    for y in range(top, bottom):
        for x in range(left, right):
            # Four times the squared distance from the centre, which is an integer.
            distance = (2 * y - top - bottom + 1) ** 2 + (2 * x - left - right + 1) ** 2
            level = levels[y, x]
            if level < best_level or (level == best_level and distance < best_distance):
                best_level, best_distance, best_pixel = level, distance, y * levels.shape[1] + x
    return best_pixel


@njit(cache=True)  # type: ignore[untyped-decorator]
def _append(pixel: int, level: int, ends: NDArray[np.int32], following: NDArray[np.int32]) -> None:
    """Append a pixel to its level's queue; `ends` (levels, 2) holds each queue's first and last."""
    if ends[level, 0] < 0:
        ends[level, 0] = pixel
    else:
        following[ends[level, 1]] = pixel
    ends[level, 1] = pixel


@njit(cache=True)  # type: ignore[untyped-decorator]
def _flood_levels(levels: NDArray[np.int32], side: int) -> NDArray[np.int32]:
    """Flood from the weakest pixel of each cell; one first-in-first-out queue per level."""
    height, width = levels.shape
    # A frame of one pixel, which is never flooded, makes bounds checks unnecessary.
    stride = width + 2
    labels = np.full((height + 2, stride), _FRAME, np.int32)
    labels[1:-1, 1:-1] = _UNLABELLED
    framed_levels = np.zeros((height + 2, stride), np.int32)
    framed_levels[1:-1, 1:-1] = levels
    flat_labels, flat_levels = labels.reshape(-1), framed_levels.reshape(-1)
    ends = np.full((_NUM_LEVELS, 2), -1, np.int32)
    following = np.full(len(flat_labels), -1, np.int32)
    num_labels = 0
    for top in range(0, height, side):
        for left in range(0, width, side):
            pixel = _weakest_pixel(levels, top, left, side)
            pixel = (pixel // width + 1) * stride + pixel % width + 1
            flat_labels[pixel] = num_labels
            num_labels += 1
            _append(pixel, flat_levels[pixel], ends, following)
    level = 0
    while level < _NUM_LEVELS:
        pixel = ends[level, 0]
        if pixel < 0:
            level += 1
            continue
        ends[level, 0] = following[pixel]
        label = flat_labels[pixel]
        for step in (stride, -stride, 1, -1):
            to = pixel + step
            if flat_labels[to] == _UNLABELLED:
                flat_labels[to] = label
                _append(to, max(level, flat_levels[to]), ends, following)
    return labels[1:-1, 1:-1].copy()


@njit(cache=True)  # type: ignore[untyped-decorator]
def _number_arcs(
    labels: NDArray[np.int32],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """The arcs at the right and lower sides of every pixel, -1 for none, and the regions of each arc."""
    height, width = labels.shape
    to_right = np.full((height, width), -1, np.int32)
    below = np.full((height, width), -1, np.int32)
    # Each region has a linked list of its arcs to regions with larger labels.
    heads = np.full(labels.max() + 1, -1, np.int32)
    max_arcs = (labels[:, 1:] != labels[:, :-1]).sum() + (labels[1:] != labels[:-1]).sum()
    pairs = np.empty((max_arcs, 2), np.int32)
    following = np.empty(max_arcs, np.int32)
    count = 0
    for y in range(height):
        for x in range(width):
            if x + 1 < width and labels[y, x] != labels[y, x + 1]:
                to_right[y, x] = _find_arc(labels[y, x], labels[y, x + 1], pairs, heads, following, count)
                count = max(count, to_right[y, x] + 1)
            if y + 1 < height and labels[y, x] != labels[y + 1, x]:
                below[y, x] = _find_arc(labels[y, x], labels[y + 1, x], pairs, heads, following, count)
                count = max(count, below[y, x] + 1)
    return to_right, below, pairs[:count].copy()


@njit(cache=True)  # type: ignore[untyped-decorator]
def _find_arc(
    one: int,
    other: int,
    pairs: NDArray[np.int32],
    heads: NDArray[np.int32],
    following: NDArray[np.int32],
    count: int,
) -> int:
    """The arc between two regions; a new one has the number `count`."""
    first, second = min(one, other), max(one, other)
    arc = heads[first]
    while arc >= 0 and pairs[arc, 1] != second:
        arc = following[arc]
    if arc >= 0:
        return int(arc)
    pairs[count, 0], pairs[count, 1] = first, second
    following[count], heads[first] = heads[first], count
    return count


@njit(cache=True)  # type: ignore[untyped-decorator]
def _arc_normals(
    to_right: NDArray[np.int32], below: NDArray[np.int32], num_arcs: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit normals (E, 2) as (x, y) of the line fitted to each arc's sides, and the number of sides (E,)."""
    height, width = to_right.shape
    moments = np.zeros((num_arcs, 6))
    for y in range(height):
        for x in range(width):
            # In half pixels, so that the centres of sides are integers.
            for arc, side_y, side_x in ((to_right[y, x], 2 * y, 2 * x + 1), (below[y, x], 2 * y + 1, 2 * x)):
                if arc >= 0:
                    moments[arc, 0] += 1
                    moments[arc, 1] += side_x
                    moments[arc, 2] += side_y
                    moments[arc, 3] += side_x * side_x
                    moments[arc, 4] += side_x * side_y
                    moments[arc, 5] += side_y * side_y
    normals = np.empty((num_arcs, 2))
    for arc in range(num_arcs):
        count, mean_x, mean_y = (
            moments[arc, 0],
            moments[arc, 1] / moments[arc, 0],
            moments[arc, 2] / moments[arc, 0],
        )
        variance_x = moments[arc, 3] / count - mean_x * mean_x
        covariance = moments[arc, 4] / count - mean_x * mean_y
        variance_y = moments[arc, 5] / count - mean_y * mean_y
        along = 0.5 * np.arctan2(2 * covariance, variance_x - variance_y)
        normals[arc, 0], normals[arc, 1] = -np.sin(along), np.cos(along)
    return normals, moments[:, 0].copy()


@njit(cache=True)  # type: ignore[untyped-decorator]
def _sum_strengths(
    to_right: NDArray[np.int32], below: NDArray[np.int32], tensor: NDArray[np.float32], num_arcs: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Summed strengths (E,) and numbers of sides (E,) of the arcs."""
    normals, lengths = _arc_normals(to_right, below, num_arcs)
    strengths = np.zeros(num_arcs)
    height, width = to_right.shape
    for y in range(height):
        for x in range(width):
            for arc, other_y, other_x in ((to_right[y, x], y, x + 1), (below[y, x], y + 1, x)):
                if arc < 0:
                    continue
                xx = 0.5 * (tensor[y, x, 0] + tensor[other_y, other_x, 0])
                xy = 0.5 * (tensor[y, x, 1] + tensor[other_y, other_x, 1])
                yy = 0.5 * (tensor[y, x, 2] + tensor[other_y, other_x, 2])
                if lengths[arc] >= _MIN_ORIENTED_SIDES:
                    normal_x, normal_y = normals[arc]
                    form = xx * normal_x**2 + 2 * xy * normal_x * normal_y + yy * normal_y**2
                else:
                    form = 0.5 * (xx + yy) + np.sqrt(0.25 * (xx - yy) ** 2 + xy * xy)
                # Rounding can bring a zero slightly below zero.
                strengths[arc] += max(form, 0.0) ** _ARC_POWER
    return strengths, lengths
