"""Boxes are int32 (N, 4) arrays of (x0, y0, x1, y1) in pixels, half-open: width = x1 - x0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mask_boxes_xyxy(masks: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Tight boxes of masks (N, H, W), int32 (N, 4), xyxy, half-open; (0, 0, 0, 0) for an empty mask.

    >>> mask_boxes_xyxy(np.array([[[0, 0, 0], [0, 1, 1]]], dtype=bool)).tolist()
    [[1, 1, 3, 2]]
    """
    boxes = np.zeros((len(masks), 4), np.int32)
    if masks.size == 0:
        return boxes
    columns: NDArray[np.bool_] = np.any(masks, axis=1)
    rows: NDArray[np.bool_] = np.any(masks, axis=2)
    boxes[:, 0], boxes[:, 1] = columns.argmax(axis=1), rows.argmax(axis=1)
    boxes[:, 2] = masks.shape[2] - columns[:, ::-1].argmax(axis=1)
    boxes[:, 3] = masks.shape[1] - rows[:, ::-1].argmax(axis=1)
    boxes[~rows.any(axis=1)] = 0
    return boxes


def xyxy_to_xywh(boxes_xyxy: NDArray[np.int32]) -> NDArray[np.int32]:
    """Convert boxes (N, 4) from half-open xyxy to COCO's (x, y, width, height).

    >>> xyxy_to_xywh(np.array([[1, 1, 3, 2]], dtype=np.int32)).tolist()
    [[1, 1, 2, 1]]
    """
    boxes = boxes_xyxy.copy()
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


Box = tuple[int, int, int, int]
"""(x0, y0, x1, y1) in pixels, half-open."""
