"""Assignment of grid cells to objects.

Source: Wang et al., arXiv 1912.04488, section 3.3.1: a cell is positive if it lies in the centre region of an
object, the box of 0.2 times its size around its centre of mass, on the levels for objects of this size. Of
several objects, the smallest gets the cell (ours), as it has fewer cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from engine.masks.boxes import mask_boxes_xyxy
from engine.solo.config import GridConfig
from engine.solo.tensors import TensorGroup


@dataclass(frozen=True, kw_only=True, eq=False)
class CellTargets(TensorGroup):
    """The positive cells of one image.

    `objectness` is float32 (G,): 1 for positive, 0 for negative and NaN for ignored cells. `indices` and
    `instance_of_cell` are int64 (M,): the cells whose masks are learned, in ascending order, and the instance
    of each. M may be less than the number of positive cells, see `GridConfig.max_cells_per_image`.
    """

    objectness: torch.Tensor
    indices: torch.Tensor
    instance_of_cell: torch.Tensor


def assign_cells(masks: NDArray[np.bool_], config: GridConfig) -> CellTargets:
    """Targets of one image from its masks (N, H, W); an empty mask has no cells.

    >>> masks = np.zeros((1, 8, 8), bool)
    >>> masks[0, :2, :2] = True
    >>> grid = GridConfig(grids=(4, 2, 2, 2, 2), ranges_px=((1, 8), (8, 9), (8, 9), (8, 9), (8, 9)))
    >>> assign_cells(masks, grid).indices.tolist()
    [0]
    """
    instance_of_cell = np.full(config.num_cells, -1, np.int64)
    rank_of_cell = np.zeros(config.num_cells, np.int64)
    areas = np.count_nonzero(masks, axis=(1, 2))
    boxes = mask_boxes_xyxy(masks)
    # Larger objects first, so that smaller ones overwrite them.
    for instance in np.argsort(-areas, kind="stable"):
        if areas[instance] > 0:
            cells = _object_cells(masks[instance], boxes[instance], config)
            instance_of_cell[cells] = instance
    cells = np.flatnonzero(instance_of_cell >= 0)
    # Rank of each cell within its object; first cells sort before second ones.
    for instance in np.unique(instance_of_cell[cells]):
        own = np.flatnonzero(instance_of_cell == instance)
        rank_of_cell[own] = np.arange(len(own))
    by_rank = cells[np.argsort(rank_of_cell[cells], kind="stable")]
    indices = np.sort(by_rank[: config.max_cells_per_image])
    return CellTargets(
        objectness=torch.from_numpy((instance_of_cell >= 0).astype(np.float32)),
        indices=torch.from_numpy(indices),
        instance_of_cell=torch.from_numpy(instance_of_cell[indices]),
    )


def ignore_cells(targets: CellTargets, ignored: CellTargets) -> CellTargets:
    """Mark negative cells that are positive for `ignored` objects as ignored (NaN).

    >>> def targets_of(*objectness):
    ...     none = torch.zeros(0, dtype=torch.int64)
    ...     return CellTargets(objectness=torch.tensor(objectness), indices=none, instance_of_cell=none)
    >>> ignore_cells(targets_of(1.0, 0.0, 0.0), targets_of(1.0, 1.0, 0.0)).objectness.tolist()
    [1.0, nan, 0.0]
    """
    is_ignored = (ignored.objectness == 1) & (targets.objectness == 0)
    return replace(targets, objectness=targets.objectness.masked_fill(is_ignored, torch.nan))


def _object_cells(
    mask: NDArray[np.bool_], box_xyxy: NDArray[np.int32], config: GridConfig
) -> NDArray[np.int64]:
    """The cells of all levels in the centre region of one object, (M,), in row order."""
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
    """Centre of mass along an axis, in pixels from its start; the first pixel's centre is at 0.5."""
    return float((weights * (np.arange(len(weights)) + 0.5)).sum() / weights.sum())


def _cells_between(low: float, high: float, length: int, grid: int) -> NDArray[np.int64]:
    """The cells, of `grid` along an axis of `length` pixels, that overlap low..high; at least one."""
    first = min(max(math.floor(low / length * grid), 0), grid - 1)
    stop = min(math.ceil(high / length * grid), grid)
    return np.arange(first, max(stop, first + 1))
