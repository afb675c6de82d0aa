"""Masks to polygons, in the conventions of COCO and of YOLO.

Pixel (column x, row y) covers the square from (x, y) to (x + 1, y + 1).

    COCO   vertices are pixel corners, and the polygon's interior is the mask. pycocotools fills by the
           even-odd rule, so a bridge of zero width joins a hole to its outline.
    YOLO   the polygon passes through the boundary pixels, which belong to the mask: its readers fill with
           OpenCV, which includes the border. An instance is one polygon, so bridges one pixel wide join
           holes and further components.

Components are 4-connected. COCO polygons decode to exactly the same mask. YOLO polygons do so for a single
component without holes; otherwise the pixels of the bridges are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

# Sides of a pixel, clockwise from the top: the step along each and the step across it, as (row, column).
_ALONG = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])
_ACROSS = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])
# The start of each side, relative to the pixel's top left corner.
_START = np.array([(0, 0), (0, 1), (1, 1), (1, 0)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Ring:
    """One closed boundary of a mask: the outline of a component (clockwise) or of a hole.

    `corners_xy`, int (V, 2), are the pixel corners at which the boundary turns; `pixels_xy`, int (P, 2), are
    the mask's pixels along it, in order. `component` is the component's label, from 1.
    """

    component: int
    is_hole: bool
    corners_xy: NDArray[np.int64]
    pixels_xy: NDArray[np.int64]


def trace_rings(mask: NDArray[np.bool_]) -> list[Ring]:
    """All boundaries of a mask (H, W), in row-major order of their first pixel.

    >>> [ring] = trace_rings(np.array([[0, 1, 1], [0, 0, 0]], dtype=bool))
    >>> ring.corners_xy.tolist(), ring.pixels_xy.tolist()
    ([[1, 0], [3, 0], [3, 1], [1, 1]], [[2, 0], [1, 0]])
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return []
    corner = np.array([rows[0], columns[0]])
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    padded = np.pad(cut, 1)
    num_edges = np.count_nonzero(np.diff(padded, axis=0)) + np.count_nonzero(np.diff(padded, axis=1))
    edges, ends = _walk_edges(padded, num_edges)
    labels = ndimage.label(cut)[0] if len(ends) > 1 else cut
    rings = []
    for start, end in pairwise([0, *ends]):
        pixels, sides = edges[start:end, :2] - 1, edges[start:end, 2]
        corners = (pixels + _START[sides])[sides != np.roll(sides, 1)]
        rings.append(
            Ring(
                component=int(labels[pixels[0, 0], pixels[0, 1]]),
                is_hole=_signed_area(corners) < 0,
                corners_xy=(corners + corner)[:, ::-1],
                pixels_xy=(_without_repetitions(pixels) + corner)[:, ::-1],
            )
        )
    return rings


def coco_polygons(mask: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """One polygon (V, 2) of (x, y) per component of a mask (H, W), in COCO's convention."""
    rings = trace_rings(mask)
    components = sorted({ring.component for ring in rings})
    return [
        join_rings([r.corners_xy for r in sorted(rings, key=_holes_last) if r.component == component])
        for component in components
    ]


def yolo_polygon(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The polygon (P, 2), P >= 3, of a mask (H, W) in YOLO's convention, relative to width and height.

    Coordinates are pixel indices plus a quarter, since some readers round down and others to the nearest.
    An empty mask gives (0, 2).
    """
    rings = sorted(trace_rings(mask), key=_holes_last)
    if not rings:
        return np.zeros((0, 2))
    joined = _turning_points(join_rings([ring.pixels_xy for ring in rings]))
    # A polygon needs three points; for a dot or a line the last one is repeated.
    joined = np.concatenate([joined, joined[-1:].repeat(max(3 - len(joined), 0), axis=0)])
    return (joined + 0.25) / [mask.shape[1], mask.shape[0]]


def join_rings(rings: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Join polygons into one by bridges: each starts and ends at the nearest point of the polygon so far.

    >>> square, dot = np.array([[0, 0], [2, 0], [2, 2], [0, 2]]), np.array([[3, 0]])
    >>> join_rings([square, dot]).tolist()
    [[0, 0], [2, 0], [3, 0], [2, 0], [2, 2], [0, 2]]
    """
    joined, *others = rings
    for ring in others:
        distances, nearest = cKDTree(ring).query(joined)
        leave = int(distances.argmin())
        detour = np.roll(ring, -int(nearest[leave]), axis=0)
        back = [detour[:1]] if len(ring) > 1 else []
        joined = np.concatenate([joined[: leave + 1], detour, *back, joined[leave:]])
    return joined


def _holes_last(ring: Ring) -> bool:
    return ring.is_hole


def _signed_area(corners_yx: NDArray[np.int64]) -> float:
    """Twice the area of a polygon, positive if it is clockwise in image coordinates (y down)."""
    y, x = corners_yx.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())


def _without_repetitions(points: NDArray[np.int64]) -> NDArray[np.int64]:
    """A closed path (K, 2) without consecutive duplicates; at least one point remains."""
    moved = (points != np.roll(points, 1, axis=0)).any(axis=1)
    return points[moved] if moved.any() else points[:1]


def _turning_points(points: NDArray[np.int64]) -> NDArray[np.int64]:
    """A closed path (K, 2) without collinear points; at least one point remains."""
    steps = np.roll(points, -1, axis=0) - points
    turns = (steps != np.roll(steps, 1, axis=0)).any(axis=1)
    return points[turns] if turns.any() else points[:1]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _walk_edges(padded: NDArray[np.bool_], num_edges: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Trace the boundaries of a mask with a margin of one pixel: edges (E, 3), and each boundary's end.

    An edge is (row, column, side) of an inside pixel, traversed with the mask on its right. Pixels that touch
    only at a corner are not connected.
    """
    seen = np.zeros((padded.shape[0], padded.shape[1], 4), np.bool_)
    edges = np.empty((num_edges, 3), np.int64)
    ends = np.empty(num_edges // 4 + 1, np.int64)
    length, num_rings = 0, 0
    for row in range(padded.shape[0]):
        for column in range(padded.shape[1]):
            if not padded[row, column] or padded[row - 1, column] or seen[row, column, 0]:
                continue
            y, x, side = row, column, 0
            while not seen[y, x, side]:
                seen[y, x, side] = True
                edges[length] = y, x, side
                length += 1
                ahead_y, ahead_x = y + _ALONG[side, 0], x + _ALONG[side, 1]
                beyond_y, beyond_x = ahead_y + _ACROSS[side, 0], ahead_x + _ACROSS[side, 1]
                if not padded[ahead_y, ahead_x]:
                    side = (side + 1) % 4
                elif padded[beyond_y, beyond_x]:
                    y, x, side = beyond_y, beyond_x, (side + 3) % 4
                else:
                    y, x = ahead_y, ahead_x
            ends[num_rings] = length
            num_rings += 1
    return edges, ends[:num_rings]
