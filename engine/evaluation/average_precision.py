"""Class-agnostic AP and AR of boxes or masks, by pycocotools.

Matches, precision and recall arrays are pycocotools' own. Its summary is not used, since it prints -1 for
settings other than COCO's.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.stats import rankdata

from engine.evaluation.ground_truth import AnnotatedImage
from engine.masks.boxes import xyxy_to_xywh
from engine.masks.instances import Instances

Kind = Literal["bbox", "segm"]
Metrics = dict[str, float | None]
_AREAS = ("", "s", "m", "l")  # all, small, medium, large, in the order of COCO's area ranges
_SCORE_BINS = 10
# COCO's lowest IoU threshold; from here on an instance counts as found.
_FOUND_IOU = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedImage:
    """An annotated image and the instances found in it, None if there are none."""

    truth: AnnotatedImage
    instances: Instances | None


@dataclass(frozen=True, kw_only=True)
class ImageRecall:
    """Recall of one image: the mean over COCO's IoU thresholds, and at IoU 0.5.

    Both are None if the image has no annotated object.
    """

    recall: float | None
    recall_50: float | None


@dataclass(frozen=True, kw_only=True)
class ScoreBin:
    """Instances of similar score: their number, score range, mean best IoU with the ground truth, and the
    share with an IoU of at least 0.5."""

    instances: int
    least_score: float
    greatest_score: float
    mean_iou: float
    share_found: float


@dataclass(frozen=True, kw_only=True)
class ScoreRelation:
    """How well scores predict IoUs.

    `rank_correlation` is Spearman's, None if undefined (all scores or all IoUs are equal). `bins` are tenths
    of the instances, by ascending score. Unmatched instances inside crowds are left out.
    """

    rank_correlation: float | None
    bins: tuple[ScoreBin, ...]


@dataclass(frozen=True, kw_only=True)
class KindResult:
    """Metrics of boxes or masks by name (see `measure`), recalls by image, and scores against IoUs."""

    metrics: Metrics
    recalls: tuple[ImageRecall, ...]
    score_relation: ScoreRelation


def measure(
    images: Sequence[EvaluatedImage],
    kind: Kind,
    max_detections: int,
    recall_detections: Sequence[int],
) -> KindResult:
    """Evaluate boxes ("bbox") or masks ("segm") of all images, all categories merged into one.

    The metrics are AP, AP50, AP75, APs, APm and APl with the best `max_detections` instances of each image,
    AR@k for `max_detections` and each of `recall_detections`, and ARs, ARm and ARl with `max_detections`.
    A metric without an annotated object is None. Sizes are COCO's, by the annotation's area: small below
    32^2 pixels, large above 96^2. Ties in score keep the order of the images, then of their instances.
    """
    evaluator = _run(images, kind, sorted({max_detections, *recall_detections}))
    return KindResult(
        metrics=_metrics(evaluator, max_detections),
        recalls=tuple(_recall(matches, max_detections) for matches in evaluator.evalImgs[: len(images)]),
        score_relation=_relate_scores(images, evaluator, max_detections),
    )


def _run(images: Sequence[EvaluatedImage], kind: Kind, counts: list[int]) -> COCOeval:
    """pycocotools' evaluator after accumulation; image ids are positions in `images`."""
    truths = [entry for i, image in enumerate(images) for entry in _truth_entries(i, image.truth)]
    found = [entry for i, image in enumerate(images) for entry in _found_entries(i, image.instances, kind)]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(_as_coco(images, truths), _as_coco(images, found), kind)
        evaluator.params.maxDets = counts
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def _as_coco(images: Sequence[EvaluatedImage], entries: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    sizes = [image.truth.size for image in images]
    coco.dataset = {
        "images": [{"id": i, "height": height, "width": width} for i, (height, width) in enumerate(sizes)],
        "categories": [{"id": 1}],
        # The evaluator takes id 0 for "no match".
        "annotations": [{**entry, "id": i, "category_id": 1} for i, entry in enumerate(entries, start=1)],
    }
    coco.createIndex()
    return coco


def _truth_entries(number: int, truth: AnnotatedImage) -> list[dict[str, Any]]:
    return [
        {
            "image_id": number,
            "segmentation": {"size": list(truth.size), "counts": truth.rles[i]},
            "bbox": truth.boxes_xywh[i].tolist(),
            "area": float(truth.areas[i]),
            "iscrowd": int(truth.is_crowd[i]),
        }
        for i in range(len(truth.rles))
    ]


def _found_entries(number: int, instances: Instances | None, kind: Kind) -> list[dict[str, Any]]:
    if instances is None:
        return []
    boxes_xywh = xyxy_to_xywh(instances.boxes_xyxy)
    areas = instances.areas if kind == "segm" else boxes_xywh[:, 2] * boxes_xywh[:, 3]
    return [
        {
            "image_id": number,
            "segmentation": {"size": list(instances.size), "counts": instances.rles[i]},
            "bbox": boxes_xywh[i].tolist(),
            "area": int(areas[i]),
            "score": float(instances.scores[i]),
        }
        for i in range(len(instances))
    ]


def _metrics(evaluator: COCOeval, max_detections: int) -> Metrics:
    """Means over COCO's precision (IoU thresholds, recalls, 1, areas, counts) and recall (no second axis).

    The arrays hold -1 where no object is annotated.
    """
    precision, recall, params = evaluator.eval["precision"], evaluator.eval["recall"], evaluator.params
    count = params.maxDets.index(max_detections)
    metrics: Metrics = {"AP": _mean(precision[:, :, 0, 0, count])}
    for percent in (50, 75):
        at = np.isclose(params.iouThrs, percent / 100)
        metrics[f"AP{percent}"] = _mean(precision[at, :, 0, 0, count])
    for i, area in enumerate(_AREAS[1:], start=1):
        metrics[f"AP{area}"] = _mean(precision[:, :, 0, i, count])
    for i, number in enumerate(params.maxDets):
        metrics[f"AR@{number}"] = _mean(recall[:, 0, 0, i])
    for i, area in enumerate(_AREAS[1:], start=1):
        metrics[f"AR{area}"] = _mean(recall[:, 0, i, count])
    return metrics


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[values > -1]
    return float(known.mean()) if known.size else None


def _recall(matches: dict[str, Any] | None, max_detections: int) -> ImageRecall:
    """Recall from pycocotools' matches of one image, which are None if it has no object and no instance."""
    num_objects = 0 if matches is None else np.count_nonzero(np.equal(matches["gtIgnore"], 0))
    if matches is None or num_objects == 0:
        return ImageRecall(recall=None, recall_50=None)
    is_match = (matches["dtMatches"] > 0) & np.equal(matches["dtIgnore"], 0)
    recalls = np.count_nonzero(is_match[:, :max_detections], axis=1) / num_objects
    return ImageRecall(recall=float(recalls.mean()), recall_50=float(recalls[0]))


def _relate_scores(
    images: Sequence[EvaluatedImage], evaluator: COCOeval, max_detections: int
) -> ScoreRelation:
    pairs = []
    for i, (image, matches) in enumerate(zip(images, evaluator.evalImgs, strict=False)):
        if matches is not None:
            ious, is_counted = _best_ious(
                evaluator.ious[i, 1], image.truth.is_crowd, len(matches["dtScores"])
            )
            pairs.append(
                np.stack([matches["dtScores"], ious], axis=1)[:max_detections][is_counted[:max_detections]]
            )
    scores, ious = np.concatenate([np.zeros((0, 2)), *pairs]).T
    order = np.argsort(scores, kind="stable")
    parts = np.array_split(order, min(_SCORE_BINS, len(order))) if len(order) else []
    bins = tuple(
        ScoreBin(
            instances=len(part),
            least_score=float(scores[part[0]]),
            greatest_score=float(scores[part[-1]]),
            mean_iou=float(ious[part].mean()),
            share_found=float((ious[part] >= _FOUND_IOU).mean()),
        )
        for part in parts
    )
    return ScoreRelation(rank_correlation=_rank_correlation(scores, ious), bins=bins)


def _best_ious(
    ious: Any, is_crowd: NDArray[np.bool_], num_instances: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Each instance's best IoU with an object, (D,), and whether it counts, bool (D,).

    Unmatched instances inside a crowd do not count. `ious` is COCO's (D, G), an empty list if D or G is 0.
    """
    table = np.asarray(ious, np.float64).reshape(num_instances, len(is_crowd))
    best: NDArray[np.float64] = table[:, ~is_crowd].max(axis=1, initial=0)
    in_crowd = table[:, is_crowd].max(axis=1, initial=0) >= _FOUND_IOU
    return best, (best >= _FOUND_IOU) | ~in_crowd


def _rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Spearman's rank correlation, with mean ranks for ties; None if either side is constant.

    >>> _rank_correlation(np.array([0.1, 0.2, 0.9]), np.array([3.0, 5.0, 4.0]))
    0.5
    """
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])
