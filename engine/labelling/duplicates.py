"""One object, seen in the whole image and in several tiles: one mask of it stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from engine.images.tiling import TilingConfig
from engine.masks.instances import Instances
from engine.masks.rle import overlaps
from engine.types import Outcome, Reason, Status


def merge_outcomes(outcomes: Sequence[Outcome], config: TilingConfig) -> Outcome:
    """The row of an image whose crops have the rows `outcomes`, at least one, the whole image's first.

    An image that was rejected anywhere is rejected.
    """
    for outcome in outcomes:
        if outcome.status is Status.REJECTED:
            return outcome
    found = (outcome.instances or outcome.reason for outcome in outcomes)
    result = merge_results([result for result in found if result is not None], config)
    if not isinstance(result, Instances):
        return outcomes[0]
    return replace(outcomes[0], status=Status.LABELLED, reason=None, instances=result)


def merge_results(results: Sequence[Instances | Reason], config: TilingConfig) -> Instances | Reason:
    """Instances of all crops of an image, the whole first; or the whole's reason where no crop has any."""
    if len(results) == 1:
        return results[0]
    if Reason.NON_FINITE in results:
        return Reason.NON_FINITE
    labelled = [result for result in results if isinstance(result, Instances)]
    return merge_instances(labelled, config) if labelled else results[0]


def merge_instances(parts: Sequence[Instances], config: TilingConfig) -> Instances:
    """All instances of the crops of one image, without those that another with a higher score shows.

    Of two masks the one with the lower score goes where their IoU is above `duplicate_iou`, or where more
    than `duplicate_ioa` of it lies in the other: a part goes for the object, never the object for a part.
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
    """Positions of what stays when each, in order, goes if it is a duplicate of one that stayed before it.

    >>> _keep_first(np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=bool))
    [0, 2]
    """
    kept: list[int] = []
    for i in range(len(is_duplicate_of)):
        if not is_duplicate_of[i, kept].any():
            kept.append(i)
    return kept
