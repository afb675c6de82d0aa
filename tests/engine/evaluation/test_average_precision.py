import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from engine.evaluation.average_precision import EvaluatedImage, Kind, measure
from engine.evaluation.ground_truth import AnnotatedImage, read_ground_truth
from engine.masks.boxes import mask_boxes_xyxy
from engine.masks.instances import Instances
from engine.masks.rle import decode_rles, encode_rles

COUNTS = (1, 10, 100, 1000)


def instances_of(masks: np.ndarray, scores: list[float] | np.ndarray) -> Instances:
    return Instances(
        size=masks.shape[1:],
        method="test",
        rles=encode_rles(masks),
        boxes_xyxy=mask_boxes_xyxy(masks),
        areas=masks.sum(axis=(1, 2)),
        scores=np.array(scores, np.float32),
        stabilities=np.full(len(masks), np.nan, np.float32),
    )


def truth_of(masks: np.ndarray, is_crowd: list[bool] | None = None) -> AnnotatedImage:
    boxes = mask_boxes_xyxy(masks).astype(float)
    boxes[:, 2:] -= boxes[:, :2]
    return AnnotatedImage(
        coco_id=None,
        path="a.jpg",
        size=masks.shape[1:],
        rles=encode_rles(masks),
        boxes_xywh=boxes,
        areas=masks.sum(axis=(1, 2)).astype(float),
        is_crowd=np.array(is_crowd or [False] * len(masks), bool),
    )


def rectangles(size: tuple[int, int], *boxes_xyxy: tuple[int, int, int, int]) -> np.ndarray:
    masks = np.zeros((len(boxes_xyxy), *size), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes_xyxy, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def perturb(truth: AnnotatedImage, rng: np.random.Generator) -> Instances | None:
    """The annotated masks moved, thinned, doubled or dropped, with coarse scores, so that many tie."""
    masks = []
    for mask in decode_rles(truth.rles, truth.size):
        for _ in range(rng.integers(0, 3)):
            moved = np.roll(mask, rng.integers(-6, 7, 2), axis=(0, 1))
            masks.append(moved & mask if rng.random() < 0.3 else moved)
    kept = np.array([mask for mask in masks if mask.any()], bool).reshape(-1, *truth.size)
    if len(kept) == 0:
        return None
    return instances_of(kept, rng.integers(0, 20, len(kept)) / 20)


def run_cocoeval(annotations: Path, images: list[EvaluatedImage], kind: Kind) -> COCOeval:
    """pycocotools' evaluator on the annotation file and on results in its own format."""
    results = [
        {
            "image_id": image.truth.coco_id,
            "category_id": 1,
            "score": float(image.instances.scores[i]),
            **(
                {"segmentation": {"size": list(image.truth.size), "counts": image.instances.rles[i]}}
                if kind == "segm"
                else {"bbox": [int(x0), int(y0), int(x1 - x0), int(y1 - y0)]}
            ),
        }
        for image in images
        if image.instances is not None
        for i, (x0, y0, x1, y1) in enumerate(image.instances.boxes_xyxy)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(annotations)
        for annotation in coco.dataset["annotations"]:
            annotation["category_id"] = 1
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(results), kind)
        evaluator.params.catIds = [1]
        evaluator.params.imgIds = [image.truth.coco_id for image in images]
        evaluator.params.maxDets = list(COUNTS)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def test_metrics_equal_pycocotools_on_its_own_files(development_data: Callable[[str], Path]) -> None:
    annotations = development_data("data/coco") / "annotations/instances_val2017.json"
    rng = np.random.default_rng(0)
    truths = [
        t
        for i, t in enumerate(read_ground_truth(str(annotations)))
        if i % 12 == 0 or (i < 60 and t.is_crowd.any())
    ]
    images = [EvaluatedImage(truth=truth, instances=perturb(truth, rng)) for truth in truths]
    check_metrics("bbox", annotations, images)
    check_metrics("segm", annotations, images)


def check_metrics(kind: Kind, annotations: Path, images: list[EvaluatedImage]) -> None:
    metrics = measure(images, kind, 100, COUNTS).metrics
    evaluator = run_cocoeval(annotations, images, kind)
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
    expected = {
        "AP": precision[:, :, 0, 0, 2],
        "AP50": precision[0, :, 0, 0, 2],
        "AP75": precision[5, :, 0, 0, 2],
        "APs": precision[:, :, 0, 1, 2],
        "APm": precision[:, :, 0, 2, 2],
        "APl": precision[:, :, 0, 3, 2],
        **{f"AR@{count}": recall[:, 0, 0, i] for i, count in enumerate(COUNTS)},
        **{f"AR{area}": recall[:, 0, 1 + i, 2] for i, area in enumerate("sml")},
    }
    assert metrics == pytest.approx({name: array.mean() for name, array in expected.items()}, abs=1e-9)
    assert 0.05 < metrics["AP"] < metrics["AP50"] < 0.9
    assert metrics["AR@1"] < metrics["AR@10"] < metrics["AR@100"]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_ground_truth_itself_scores_1(kind: Kind, development_data: Callable[[str], Path]) -> None:
    truths = list(islice(read_ground_truth(str(development_data("data/pennfudan"))), 20))
    images = [EvaluatedImage(truth=t, instances=instances_of(t.masks(), [1] * t.num_objects)) for t in truths]
    result = measure(images, kind, 100, (100,))
    known = {name: value for name, value in result.metrics.items() if value is not None}
    assert {"AP", "AP50", "AP75", "AR@100", "APl"} <= known.keys()
    assert known == pytest.approx(dict.fromkeys(known, 1.0))
    assert all(recall.recall == 1 for recall in result.recalls)
    assert result.score_relation.rank_correlation is None
    assert all(part.mean_iou == 1 for part in result.score_relation.bins)


@pytest.mark.parametrize("size", [(40, 90), (90, 40)])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_boxes_and_masks_are_not_transposed(kind: Kind, size: tuple[int, int]) -> None:
    height, width = size
    # Two thirds of the object along its long side: an IoU of 2/3 passes 4 of the 10 thresholds.
    truth = truth_of(rectangles(size, (0, 0, width - 10, height - 10)))
    cut = (0, 0, (width - 10) * 2 // 3, 30) if width > height else (0, 0, 30, (height - 10) * 2 // 3)
    found = instances_of(rectangles(size, cut), [0.5])
    metrics = measure([EvaluatedImage(truth=truth, instances=found)], kind, 100, (1,)).metrics
    iou = (found.areas[0]) / truth.areas[0]
    assert iou == pytest.approx(2 / 3, abs=0.02)
    assert metrics["AR@1"] == pytest.approx(0.4)
    assert metrics["AP50"] == pytest.approx(1)
    assert metrics["AP75"] == 0


def test_a_wrong_mask_with_the_right_box() -> None:
    size = (30, 50)
    corners = rectangles(size, (5, 5, 8, 8), (42, 22, 45, 25)).any(axis=0, keepdims=True)
    image = EvaluatedImage(
        truth=truth_of(rectangles(size, (5, 5, 45, 25))), instances=instances_of(corners, [1])
    )
    assert measure([image], "bbox", 100, (1,)).metrics["AP"] == pytest.approx(1)
    assert measure([image], "segm", 100, (1,)).metrics["AP"] == 0


def test_missed_objects_score_0_and_images_without_objects_score_none() -> None:
    size = (40, 60)
    something, nothing = truth_of(rectangles(size, (0, 0, 9, 9))), truth_of(rectangles(size))
    images = [EvaluatedImage(truth=truth, instances=None) for truth in (something, nothing)]
    result = measure(images, "segm", 100, COUNTS)
    assert {result.metrics[name] for name in ("AP", "AP50", "APs", "AR@1", "AR@1000", "ARs")} == {0}
    assert result.metrics["APl"] is None
    assert [recall.recall for recall in result.recalls] == [0, None]
    assert result.score_relation.bins == ()
    found = instances_of(rectangles(size, (0, 0, 5, 5)), [0.5])
    empty = measure([EvaluatedImage(truth=nothing, instances=found)], "segm", 100, COUNTS)
    assert set(empty.metrics.values()) == {None}
    assert empty.score_relation.bins[0].mean_iou == 0
    assert set(measure([], "bbox", 100, (1,)).metrics.values()) == {None}


def test_instances_inside_a_crowd_do_not_count() -> None:
    size = (40, 60)
    masks = rectangles(size, (0, 0, 10, 10), (20, 0, 60, 40))
    truth = truth_of(masks, [False, True])
    found = instances_of(rectangles(size, (0, 0, 10, 10), (30, 10, 40, 20), (22, 3, 33, 9)), [0.1, 0.9, 0.8])
    image = EvaluatedImage(truth=truth, instances=found)
    result = measure([image], "segm", 100, (1,))
    assert result.metrics["AP"] == pytest.approx(1)
    assert result.recalls[0].recall == 1
    assert [part.instances for part in result.score_relation.bins] == [1]
    plain = EvaluatedImage(truth=truth_of(masks[:1]), instances=found)
    assert measure([plain], "segm", 100, (1,)).metrics["AP"] == pytest.approx(1 / 3, abs=0.01)


def test_only_the_best_detections_count() -> None:
    size = (40, 60)
    truth = truth_of(rectangles(size, (0, 0, 10, 10)))
    others = rectangles(size, (20, 0, 30, 10), (40, 0, 50, 10), (0, 0, 10, 10))
    image = EvaluatedImage(truth=truth, instances=instances_of(others, [0.9, 0.8, 0.7]))
    two, three = (measure([image], "segm", count, (1, 3)) for count in (2, 3))
    assert (two.metrics["AP"], two.recalls[0].recall_50) == (0, 0)
    assert three.metrics["AP"] == pytest.approx(1 / 3, abs=0.01)
    assert two.metrics["AR@3"] == three.recalls[0].recall == 1
    assert sum(part.instances for part in two.score_relation.bins) == 2


def test_scores_that_rank_by_iou() -> None:
    size = (20, 200)
    starts = range(0, 200, 20)
    truth = truth_of(rectangles(size, *[(x, 0, x + 10, 10) for x in starts]))
    # The instance of score i / 10 is shifted by 10 - i pixels.
    masks = rectangles(size, *[(x + 10 - i, 0, x + 20 - i, 10) for i, x in enumerate(starts)])
    image = EvaluatedImage(truth=truth, instances=instances_of(masks, np.arange(10) / 10))
    relation = measure([image], "segm", 100, (1,)).score_relation
    assert relation.rank_correlation == pytest.approx(1)
    assert [part.mean_iou for part in relation.bins] == pytest.approx([i / (20 - i) for i in range(10)])
    assert [part.share_found for part in relation.bins] == [0] * 7 + [1] * 3
    assert image.instances is not None
    equal = replace(image, instances=replace(image.instances, scores=np.ones(10, np.float32)))
    assert measure([equal], "segm", 100, (1,)).score_relation.rank_correlation is None


def test_ties_keep_the_order_of_the_instances() -> None:
    size = (20, 60)
    masks = rectangles(size, (20, 0, 30, 10), (0, 0, 10, 10))
    truth = truth_of(masks[1:])
    first, second = (
        measure([EvaluatedImage(truth=truth, instances=instances_of(stack, [1, 1]))], "bbox", 1, (1,)).metrics
        for stack in (masks, masks[::-1])
    )
    assert (first["AP"], second["AP"]) == (0, pytest.approx(1))
    assert json.loads(json.dumps(first)) == first
