"""Which cells answer for which object.

Source: Wang et al., arXiv 1912.04488, section 3.3.1: a cell is positive if it lies in the centre region of an
object, the box of its size times 0.2 around its centre of mass, on the levels that learn objects of its size.
Where objects compete for a cell the smaller one gets it (ours), since it has fewer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engine.masks.boxes import mask_boxes_xyxy
from engine.solo.config import GridConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class CellTargets:
    """The positive cells of one image.

    `objectness` is float32 (G,), 1 where a cell is positive and NaN where that is not known. `cells` and
    `owners` are int64 (M,): the cells whose masks are learned, in ascending order, and the instance of each;
    M may be less than the number of positive cells, see `GridConfig.max_cells_per_image`.
    """

    objectness: NDArray[np.float32]
    cells: NDArray[np.int64]
    owners: NDArray[np.int64]


def assign_cells(masks: NDArray[np.bool_], config: GridConfig) -> CellTargets:
    """Targets of one image from its masks (N, H, W); an empty mask has no cells.

    >>> masks = np.zeros((1, 8, 8), bool)
    >>> masks[0, :2, :2] = True
    >>> grid = GridConfig(grids=(4, 2, 2, 2, 2), ranges_px=((1, 8), (8, 9), (8, 9), (8, 9), (8, 9)))
    >>> assign_cells(masks, grid).cells.tolist()
    [0]
    """
    owner_of_cell = np.full(config.num_cells, -1, np.int64)
    rank_of_cell = np.zeros(config.num_cells, np.int64)
    areas = np.count_nonzero(masks, axis=(1, 2))
    boxes = mask_boxes_xyxy(masks)
    # Larger objects first: smaller ones take their cells from them.
    for instance in np.argsort(-areas, kind="stable"):
        if areas[instance] > 0:
            cells = _object_cells(masks[instance], boxes[instance], config)
            owner_of_cell[cells] = instance
    cells = np.flatnonzero(owner_of_cell >= 0)
    owners = owner_of_cell[cells]
    # The how-manieth cell of its object each is; all first ones come before any second.
    for instance in np.unique(owners):
        own = cells[owners == instance]
        rank_of_cell[own] = np.arange(len(own))
    chosen = np.sort(np.argsort(rank_of_cell[cells], kind="stable")[: config.max_cells_per_image])
    return CellTargets(
        objectness=(owner_of_cell >= 0).astype(np.float32), cells=cells[chosen], owners=owners[chosen]
    )


def ignore_cells(targets: CellTargets, unsure: CellTargets) -> CellTargets:
    """The targets of some objects where cells of others, of which it is not sure that they are objects, are
    no background either.

    >>> def targets_of(*objectness):
    ...     return CellTargets(objectness=np.float32(objectness), cells=np.arange(0), owners=np.arange(0))
    >>> ignore_cells(targets_of(1, 0, 0), targets_of(1, 1, 0)).objectness.tolist()
    [1.0, nan, 0.0]
    """
    is_open = (unsure.objectness == 1) & (targets.objectness == 0)
    return replace(targets, objectness=np.where(is_open, np.float32(np.nan), targets.objectness))


def _object_cells(
    mask: NDArray[np.bool_], box_xyxy: NDArray[np.int32], config: GridConfig
) -> NDArray[np.int64]:
    """The cells of all levels in the centre region of one object, (M,), row by row."""
    height, width = mask.shape
    x0, y0, x1, y1 = (int(value) for value in box_xyxy)
    size_px = ((x1 - x0) * (y1 - y0)) ** 0.5
    inside = mask[y0:y1, x0:x1]
    centre_y = y0 + _centre(inside.sum(axis=1))
    centre_x = x0 + _centre(inside.sum(axis=0))
    reach_y, reach_x = config.centre * (y1 - y0) / 2, config.centre * (x1 - x0) / 2
    found: list[NDArray[np.int64]] = []
    first_cell = 0
    for grid, (low, high) in zip(config.sizes, config.size_ranges_px, strict=True):
        if low <= size_px <= high:
            rows = _cells_between(centre_y - reach_y, centre_y + reach_y, height, grid)
            columns = _cells_between(centre_x - reach_x, centre_x + reach_x, width, grid)
            found.append((first_cell + rows[:, None] * grid + columns[None]).ravel())
        first_cell += grid**2
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _centre(weights: NDArray[np.integer]) -> float:
    """Centre of mass along an axis, in pixels from its start to the middles of pixels."""
    return float((weights * (np.arange(len(weights)) + 0.5)).sum() / weights.sum())


def _cells_between(low: float, high: float, length: int, grid: int) -> NDArray[np.int64]:
    """The cells of a row of `grid` that lie on low..high of `length` pixels, at least one."""
    first = min(max(math.floor(low / length * grid), 0), grid - 1)
    stop = min(math.ceil(high / length * grid), grid)
    return np.arange(first, max(stop, first + 1))
