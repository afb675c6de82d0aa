"""Merge the labels of an image's crops: of an object seen in several of them, one mask is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from engine.images.crops import Crop, group_by_image
from engine.images.tiling import TilingConfig
from engine.labelling.outcomes import Labels
from engine.masks.instances import Instances
from engine.masks.rle import overlaps
from engine.types import Reason


def merge_crops(
    labels: Iterable[tuple[Crop, Labels | Exception]], config: TilingConfig
) -> Iterator[Labels | Exception]:
    """Labels of each image from those of its crops, the whole image's first, or the first error.

    Raises torch.OutOfMemoryError, for which no image is to blame.
    """
    for crops in group_by_image(labels):
        found = []
        for _, item in crops:
            if isinstance(item, torch.OutOfMemoryError):
                raise item
            found.append(item)
        yield merge_labels(found, config)


def merge_labels(crops: Sequence[Labels | Exception], config: TilingConfig) -> Labels | Exception:
    """Labels of one image from those of its crops, at least one, the whole image's first.

    Without any instances they are those of the whole. A crop with an error or with features that are not
    finite decides for the whole image.
    """
    labels: list[Labels] = []
    for crop in crops:
        if isinstance(crop, Exception) or crop.reason is Reason.NON_FINITE:
            return crop
        labels.append(crop)
    parts = [crop.instances for crop in labels if crop.instances is not None]
    if not parts or len(labels) == 1:
        return labels[0]
    return replace(labels[0], reason=None, instances=merge_instances(parts, config))


def merge_instances(parts: Sequence[Instances], config: TilingConfig) -> Instances:
    """Instances of all crops of one image, without duplicates (greedy non-maximum suppression).

    Of two masks the one with the lower score is dropped if their IoU is above `duplicate_iou`, or if more
    than `duplicate_ioa` of it lies in the other: a part is dropped for the object, never the reverse.
    Ordered by falling score, then falling area, then box.
    """
    rles = tuple(rle for part in parts for rle in part.rles)
    boxes_xyxy = np.concatenate([part.boxes_xyxy for part in parts])
    areas = np.concatenate([part.areas for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    order = np.lexsort((*boxes_xyxy.T[::-1], -areas, -scores))
    ious, ioas = overlaps([rles[i] for i in order], parts[0].size)
    kept = order[_keep_first((ious > config.duplicate_iou) | (ioas > config.duplicate_ioa))]
    return Instances(
        size=parts[0].size,
        method=parts[0].method,
        rles=tuple(rles[i] for i in kept),
        boxes_xyxy=boxes_xyxy[kept],
        areas=areas[kept],
        scores=scores[kept],
        stabilities=np.concatenate([part.stabilities for part in parts])[kept],
    )


def _keep_first(is_duplicate_of: NDArray[np.bool_]) -> list[int]:
    """Positions that are kept if each, in order, is dropped as a duplicate of one kept before it.

    >>> _keep_first(np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=bool))
    [0, 2]
    """
    kept: list[int] = []
    for i in range(len(is_duplicate_of)):
        if not is_duplicate_of[i, kept].any():
            kept.append(i)
    return kept
