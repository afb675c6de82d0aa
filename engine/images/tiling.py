"""Tiles: overlapping parts of a large image, resized one by one so that small objects fill more patches.

The whole image is always labelled as well. It shows large objects and the background: a tile may lie within
an object or within the background, which its own border cannot tell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from engine.bounds import Bounded, Bounds, Count
from engine.masks.boxes import Box

PositiveShare = Annotated[float, Bounds(0, 1, "a share", above=True)]


@dataclass(frozen=True, kw_only=True)
class TilingConfig(Bounded):
    """Whether images are labelled in tiles as well, and how duplicates are removed."""

    tile: Annotated[int, Bounds(32, what="a number of pixels")] | None = None
    """Also label square tiles of this many pixels a side, in images that are larger. Default: no tiles."""
    overlap: Annotated[float, Bounds(0, 0.9, "a share of a tile's side")] = 0.25
    """Minimum overlap of neighbouring tiles, as a share of a tile's side. An object larger than the overlap
    may be cut by every tile; then only the whole image shows it."""
    tile_min_patches: Count = 3
    """Drop masks of fewer patches in a tile: most of them are noise."""
    duplicate_iou: PositiveShare = 0.5
    """Of two masks of a tiled image with a larger IoU than this, keep the one with the higher score."""
    duplicate_ioa: PositiveShare = 0.8
    """Drop the mask with the lower score if more than this share of it lies in the other."""


def tile_boxes(size: tuple[int, int], config: TilingConfig) -> list[Box]:
    """Tiles of an image of `size` = (height, width), row by row; none if the image is no larger than a tile.

    They are evenly spaced, cover the image, overlap by at least `config.overlap` and end at its edges. If a
    side of the image is shorter than a tile, so are the tiles.

    >>> tile_boxes((300, 500), TilingConfig(tile=300, overlap=0.25))
    [(0, 0, 300, 300), (200, 0, 500, 300)]
    >>> tile_boxes((300, 300), TilingConfig(tile=300))
    []
    """
    if config.tile is None or max(size) <= config.tile:
        return []
    rows, columns = (_spans(length, config.tile, config.overlap) for length in size)
    return [(x0, y0, x1, y1) for y0, y1 in rows for x0, x1 in columns]


def _spans(length: int, tile: int, overlap: float) -> list[tuple[int, int]]:
    """Half-open ranges of the tiles along one side."""
    if length <= tile:
        return [(0, length)]
    # Rounded, so that an overlap such as 0.1 does not add a tile through its binary representation.
    steps = math.ceil(round((length - tile) / (tile * (1 - overlap)), 9))
    starts = [round(i * (length - tile) / steps) for i in range(steps + 1)]
    return [(start, start + tile) for start in starts]


def cut_mask(
    mask: NDArray[np.bool_], box_xyxy: Box, size: tuple[int, int], grid: tuple[int, int]
) -> NDArray[np.bool_]:
    """Cut the tile `box_xyxy` out of a mask (h, w) of an image of `size`, resampled to the tile's `grid`.

    Each patch of the tile takes the patch of the image that contains its centre.

    >>> cut_mask(np.array([[0, 1]], dtype=bool), (20, 0, 60, 10), (10, 80), (1, 4)).tolist()
    [[False, False, True, True]]
    """
    x0, y0, x1, y1 = box_xyxy
    rows = (y0 + (np.arange(grid[0]) + 0.5) * (y1 - y0) / grid[0]) * mask.shape[0] / size[0]
    columns = (x0 + (np.arange(grid[1]) + 0.5) * (x1 - x0) / grid[1]) * mask.shape[1] / size[1]
    cut: NDArray[np.bool_] = mask[np.ix_(rows.astype(np.int64), columns.astype(np.int64))]
    return cut


def boxes_touch_tile_edge(
    boxes_xyxy: NDArray[np.int32], tile_xyxy: Box, size: tuple[int, int]
) -> NDArray[np.bool_]:
    """`touches_tile_edge` for masks given by their boxes (N, 4) in the image.

    >>> boxes_touch_tile_edge(np.int32([[0, 0, 10, 5], [20, 0, 30, 5]]), (0, 0, 30, 10), (10, 90))
    array([False,  True])
    """
    x0, y0, x1, y1 = tile_xyxy
    left, top, right, bottom = boxes_xyxy.T
    touching: NDArray[np.bool_] = (
        ((left <= x0) & (x0 > 0))
        | ((top <= y0) & (y0 > 0))
        | ((right >= x1) & (x1 < size[1]))
        | ((bottom >= y1) & (y1 < size[0]))
    )
    return touching


def touches_tile_edge(masks: NDArray[np.bool_], box_xyxy: Box, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which masks (N, h, w) of the tile `box_xyxy` touch one of its inner edges, not the image's; bool (N,).

    Such a mask may be truncated: another tile or the whole image shows the complete object.

    >>> left = np.array([[[1, 0, 0]]], dtype=bool)
    >>> touches_tile_edge(left, (0, 0, 30, 10), (10, 90)), touches_tile_edge(left, (30, 0, 60, 10), (10, 90))
    (array([False]), array([ True]))
    """
    x0, y0, x1, y1 = box_xyxy
    sides = (
        (y0 > 0, masks[:, 0, :]),
        (y1 < size[0], masks[:, -1, :]),
        (x0 > 0, masks[:, :, 0]),
        (x1 < size[1], masks[:, :, -1]),
    )
    touching = np.zeros(len(masks), bool)
    for is_inner, edge in sides:
        if is_inner:
            touching |= edge.any(axis=1)
    return touching
