"""Packing of masks and scores as instances."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray
from PIL import Image

from engine.masks.boxes import Box
from engine.masks.instances import Instances
from engine.masks.tracing import compress_counts, counts_of_runs, trace_runs


def make_instances(
    masks: Iterable[NDArray[np.bool_]],
    scores: NDArray[np.float32],
    size: tuple[int, int],
    method: str,
    box_xyxy: Box | None = None,
) -> Instances:
    """Pack N masks (h, w) of an image of `size` = (height, width) as instances.

    Masks are resized to the image, or to the part `box_xyxy` of it, each pixel taking the value of its
    nearest neighbour; those that vanish are left out. Ordered by falling score, then falling area, then first
    pixel in reading order. Time and memory depend on the areas of the masks, not on the size of the image.
    """
    x0, y0, x1, y1 = box_xyxy or (0, 0, size[1], size[0])
    found: list[tuple[float, int, int, bytes, NDArray[np.int64]]] = []
    for mask, score in zip(masks, scores, strict=True):
        rows = nearest_neighbours(mask.shape[0], y1 - y0)
        columns = nearest_neighbours(mask.shape[1], x1 - x0)
        runs = trace_runs(mask, rows, columns, (y0, x0), size[0])
        if len(runs) > 0:
            area, first_pixel, box = _measure(runs, size)
            rle = compress_counts(counts_of_runs(runs, size[0] * size[1])).tobytes()
            found.append((-float(score), -area, first_pixel, rle, box))
    found.sort(key=lambda item: item[:3])
    return Instances(
        size=size,
        method=method,
        rles=tuple(item[3] for item in found),
        boxes_xyxy=np.array([item[4] for item in found], np.int32).reshape(-1, 4),
        areas=np.array([-item[1] for item in found], np.int64),
        scores=np.array([-item[0] for item in found], np.float32),
        stabilities=np.full(len(found), np.nan, np.float32),
    )


@lru_cache(maxsize=8)
def nearest_neighbours(length: int, new_length: int) -> NDArray[np.int64]:
    """Positions along a side of `length` that Pillow's nearest neighbour takes for each of `new_length`.

    >>> nearest_neighbours(2, 5).tolist(), nearest_neighbours(5, 2).tolist()
    ([0, 0, 1, 1, 1], [1, 3])
    """
    line = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    resized = line.resize((new_length, 1), Image.Resampling.NEAREST)
    positions: NDArray[np.int64] = np.asarray(resized, np.int64)[0]
    return positions


@njit(cache=True)  # type: ignore[untyped-decorator]
def _measure(runs: NDArray[np.int64], size: tuple[int, int]) -> tuple[int, int, NDArray[np.int64]]:
    """Area, first pixel in reading order and half-open xyxy box (4,) of runs from `trace_runs`."""
    height, width = size
    area, top, bottom, first_column = 0, height, 0, width
    for start, stop in runs:
        area += stop - start
        column, row = start // height, start % height
        last_column, last_row = (stop - 1) // height, (stop - 1) % height
        if last_column > column:  # the run wraps around the lower edge
            bottom = height
            if row > 0:
                column, row = column + 1, 0
        bottom = max(bottom, last_row + 1)
        if row < top or (row == top and column < first_column):
            top, first_column = row, column
    left, right = runs[0, 0] // height, (runs[-1, 1] - 1) // height + 1
    return area, top * width + first_column, np.array([left, top, right, bottom])
