"""Packing of masks and scores as instances."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from engine.masks.boxes import Box, mask_boxes_xyxy
from engine.masks.components import resize_masks
from engine.masks.instances import Instances
from engine.masks.rle import encode_rle_within


def make_instances(
    masks: Iterable[NDArray[np.bool_]],
    scores: NDArray[np.float32],
    size: tuple[int, int],
    method: str,
    box_xyxy: Box | None = None,
) -> Instances:
    """Pack N masks (h, w) of an image of `size` = (height, width) as instances.

    Masks are resized to the image, or to the part `box_xyxy` of it; those that vanish are left out. Ordered
    by falling score, then falling area, then first pixel in reading order. One mask at a time is held at full
    size, which for a large photograph is a hundred megabytes.
    """
    x0, y0, x1, y1 = box_xyxy or (0, 0, size[1], size[0])
    found: list[tuple[float, int, int, bytes, NDArray[np.int32]]] = []
    for mask, score in zip(masks, scores, strict=True):
        part = resize_masks(mask[None], (y1 - y0, x1 - x0))
        area = int(np.count_nonzero(part))
        if area > 0:
            row, column = divmod(int(part.argmax()), x1 - x0)
            first_pixel = (y0 + row) * size[1] + x0 + column
            left, top, right, bottom = mask_boxes_xyxy(part)[0].tolist()
            rle = encode_rle_within(part[0, top:bottom, left:right], x0 + left, y0 + top, size)
            box = np.array([x0 + left, y0 + top, x0 + right, y0 + bottom], np.int32)
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
