"""Tiles: the parts of a large image that are looked at one by one, so that small objects fill more patches.

The whole image is always looked at as well. It shows large objects, and what is background: a tile may lie
within an object or within the background, and its own border says nothing of either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import ConfigurationError
from engine.masks.boxes import Box


@dataclass(frozen=True, kw_only=True)
class TilingConfig:
    """Whether images are looked at in tiles as well, and what becomes of objects that are seen twice."""

    tile: int | None = None
    """Look at square tiles of this many pixels a side, too, of images that are larger. Default: no tiles."""
    overlap: float = 0.25
    """Share of a tile's side by which neighbouring tiles overlap, at least. What is larger than the overlap
    may be cut by every tile; then only the whole image shows it."""
    tile_min_patches: int = 3
    """Masks of fewer patches in a tile are dropped: most of them are noise."""
    duplicate_iou: float = 0.5
    """Of two masks of a tiled image with a larger IoU, the one with the higher score stays."""
    duplicate_ioa: float = 0.8
    """The same where more than this share of the mask with the lower score lies in the other."""

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile < 32:
            raise ConfigurationError(f"a tile is at least 32 pixels wide, got {self.tile}")
        if not 0 <= self.overlap <= 0.9:
            raise ConfigurationError(f"overlap is a share of a tile's side, 0 to 0.9, got {self.overlap}")
        if self.tile_min_patches < 1:
            raise ConfigurationError(f"tile_min_patches is at least 1, got {self.tile_min_patches}")
        for name in ("duplicate_iou", "duplicate_ioa"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigurationError(f"{name} is above 0 and at most 1, got {getattr(self, name)}")


def tile_boxes(size: tuple[int, int], config: TilingConfig) -> list[Box]:
    """The tiles of an image of `size` = (height, width), row by row; none where it is no larger than a tile.

    They lie at equal distances, cover the image, overlap by `config.overlap` at least and end at its edges.
    Where a side of the image is shorter than a tile, so are the tiles.

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
    """First and last pixel (excluded) of the tiles along one side."""
    if length <= tile:
        return [(0, length)]
    # Rounded, so that an overlap such as 0.1 does not cost a tile for its last binary digit.
    steps = math.ceil(round((length - tile) / (tile * (1 - overlap)), 9))
    starts = [round(i * (length - tile) / steps) for i in range(steps + 1)]
    return [(start, start + tile) for start in starts]


def cut_mask(
    mask: NDArray[np.bool_], box_xyxy: Box, size: tuple[int, int], grid: tuple[int, int]
) -> NDArray[np.bool_]:
    """What a mask (h, w) of a whole image of `size` is in the tile `box_xyxy`, at the tile's `grid`.

    Each patch of the tile takes the patch of the image that holds its centre.

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
    """As `touches_tile_edge`, of masks of which the boxes (N, 4) in the image are known.

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
    """Which masks (N, h, w) of the tile `box_xyxy` touch a side of it that is not the image's; bool (N,).

    Such a mask is cut off, or may be: another tile or the whole image shows the object itself.

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
