import json

import numpy as np
import pytest

from engine.errors import ConfigurationError, CorpusError, StoreError
from engine.evaluation.ground_truth import AnnotatedImage
from engine.evaluation.protocol import EvaluatedImage, EvaluationProtocol, evaluate, evaluate_version
from engine.masks.boxes import mask_boxes_xyxy
from engine.masks.instances import Instances
from engine.masks.rle import encode_rles
from engine.objects.memory import MemoryObjects
from engine.store.pseudo_labels import PseudoLabelStore, Version
from engine.store.selection import SelectionConfig
from engine.store.version_info import VersionInfo
from engine.types import ImageRecord, Outcome, Reason, Status

SIZE = (12, 20)
INFO = VersionInfo(
    round=0, configuration={}, weights_digest="0", parent=None, code_version="1.0", device="cpu"
)


def squares(*columns: int) -> np.ndarray:
    """Masks of 4 x 4 pixels whose left edges are these columns."""
    masks = np.zeros((len(columns), *SIZE), bool)
    for mask, column in zip(masks, columns, strict=True):
        mask[2:6, column : column + 4] = True
    return masks


def instances(scores: dict[int, float], stabilities: list[float] | None = None) -> Instances:
    masks = squares(*scores)
    return Instances(
        size=SIZE,
        method="test",
        rles=encode_rles(masks),
        boxes_xyxy=mask_boxes_xyxy(masks),
        areas=masks.sum(axis=(1, 2)),
        scores=np.array(list(scores.values()), np.float32),
        stabilities=np.array(stabilities or [np.nan] * len(masks), np.float32),
    )


def truth(path: str, *columns: int) -> AnnotatedImage:
    masks = squares(*columns)
    boxes = mask_boxes_xyxy(masks).astype(float)
    boxes[:, 2:] -= boxes[:, :2]
    return AnnotatedImage(
        coco_id=None,
        path=path,
        size=SIZE,
        rles=encode_rles(masks),
        boxes_xywh=boxes,
        areas=np.full(len(masks), 16.0),
        is_crowd=np.zeros(len(masks), bool),
    )


def row(path: str, found: Instances | None, size: tuple[int, int] = SIZE) -> Outcome:
    return Outcome(
        record=ImageRecord(image_id=path, path=path),
        status=Status.NO_OBJECT if found is None else Status.LABELLED,
        height=size[0],
        width=size[1],
        instances=found,
        reason=Reason.NO_BACKGROUND if found is None else None,
    )


def version_of(*shards: list[Outcome]) -> Version:
    version = PseudoLabelStore(MemoryObjects()).begin(INFO, "resume")
    for number, rows in enumerate(shards):
        version.commit(number, rows)
    return version


def rejected(path: str) -> Outcome:
    record = ImageRecord(image_id=path, path=path)
    return Outcome(record=record, status=Status.REJECTED, reason=Reason.TRUNCATED)


def test_a_version_is_evaluated_on_the_annotated_images() -> None:
    version = version_of(
        [row("a.jpg", instances({0: 0.9})), row("unknown.jpg", instances({0: 1.0}))],
        [row("b.jpg", None), rejected("c.jpg"), row("other_size.jpg", instances({0: 1.0}), (20, 12))],
    )
    names = ("a.jpg", "b.jpg", "c.jpg", "other_size.jpg", "absent.jpg")
    evaluation = evaluate_version(version, [truth(name, 0) for name in names], EvaluationProtocol())
    assert evaluation.masks.metrics["AR@100"] == pytest.approx(1 / 3)
    assert [recall.recall for recall in evaluation.masks.recalls] == [1, 0, 0]
    assert evaluation.absent == ("absent.jpg",)
    assert evaluation.resized == ("other_size.jpg",)


def test_the_json_holds_metrics_protocol_and_images() -> None:
    version = version_of([row("a.jpg", instances({0: 0.9, 10: 0.8}))])
    truths = [truth("a.jpg", 0, 5)]
    evaluation = evaluate_version(version, truths, EvaluationProtocol(recall_detections=(1, 100)))
    content = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert list(content) == ["boxes", "masks", "protocol", "score_to_iou", "images"]
    assert content["boxes"]["AR@100"] == content["masks"]["AR@100"] == 0.5
    assert content["masks"]["APl"] is None
    assert content["protocol"]["max_detections"] == 100
    assert content["protocol"]["recall_detections"] == [1, 100]
    assert content["protocol"]["selection"]["min_score"] is None
    ground_truth = content["protocol"]["ground_truth"]
    assert (ground_truth["images"], ground_truth["objects"], len(ground_truth["digest"])) == (1, 2, 64)
    (image,) = content["images"]
    assert (image["image"], image["objects"], image["instances"]) == ("a.jpg", 2, 2)
    assert image["masks"] == {"recall": 0.5, "recall_50": 0.5}
    assert content["score_to_iou"]["masks"]["rank_correlation"] == pytest.approx(1)
    again = evaluate_version(version, truths, EvaluationProtocol(recall_detections=(1, 100)))
    assert json.dumps(again.to_json()) == json.dumps(evaluation.to_json())
    moved = evaluate_version(version, [truth("a.jpg", 0, 6)], EvaluationProtocol())
    assert moved.describe_protocol()["ground_truth"]["digest"] != ground_truth["digest"]
    assert len(again.digest) == 12
    assert again.digest == evaluation.digest != moved.digest


def test_instances_are_ranked_by_score_by_stability_or_not_at_all() -> None:
    # The first instance is right. It has the higher score and the lower stability.
    rows = [row("a.jpg", instances({0: 0.9, 10: 0.5}, [1.0, 2.0]))]
    precisions = [
        evaluate_version(version_of(rows), [truth("a.jpg", 0)], EvaluationProtocol(score=score)).masks.metrics
        for score in ("score", "stability", "none")
    ]
    assert [metrics["AP"] for metrics in precisions] == pytest.approx([1, 0.5, 1])
    unmeasured = version_of([row("a.jpg", instances({0: 0.9}))])
    with pytest.raises(StoreError, match="stability"):
        evaluate_version(unmeasured, [truth("a.jpg", 0)], EvaluationProtocol(score="stability"))


def test_only_selected_instances_are_evaluated() -> None:
    version = version_of([row("a.jpg", instances({10: 0.9, 0: 0.5}))])
    protocols = [
        EvaluationProtocol(selection=selection)
        for selection in (SelectionConfig(), SelectionConfig(max_per_image=1), SelectionConfig(min_score=0.9))
    ]
    recalls = [evaluate_version(version, [truth("a.jpg", 0)], p).boxes.metrics["AR@100"] for p in protocols]
    assert recalls == [1, 0, 0]


def test_a_ground_truth_of_other_images_is_an_error() -> None:
    version = version_of([row("a.jpg", None, (20, 12))])
    with pytest.raises(CorpusError, match=r"'a\.jpg' is \(12, 20\) there, \(20, 12\) in the store"):
        evaluate_version(version, [truth("a.jpg", 0)], EvaluationProtocol())
    with pytest.raises(CorpusError, match=r"'b\.jpg'"):
        evaluate_version(version, [truth("b.jpg", 0)], EvaluationProtocol())


def test_an_evaluation_without_instances() -> None:
    assert evaluate([], EvaluationProtocol()).masks.metrics["AP"] is None
    image = EvaluatedImage(truth=truth("a.jpg", 0), instances=None)
    metrics = evaluate([image], EvaluationProtocol()).boxes.metrics
    assert {metrics["AP"], metrics["AR@1000"]} == {0}


def test_bounds_of_the_protocol() -> None:
    with pytest.raises(ConfigurationError, match="max_detections is a whole number >= 1, got 0"):
        EvaluationProtocol(max_detections=0)
    with pytest.raises(ConfigurationError, match="recall_detections is a whole number >= 1"):
        EvaluationProtocol(recall_detections=(1, 0))
    with pytest.raises(ConfigurationError, match="recall_detections is empty"):
        EvaluationProtocol(recall_detections=())
