"""Instances against what people drew: class-agnostic AP and AR of boxes and masks, as COCO measures them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from engine.errors import ConfigurationError, CorpusError, StoreError
from engine.evaluation.average_precision import EvaluatedImage, KindResult, measure
from engine.evaluation.ground_truth import AnnotatedImage
from engine.evaluation.matching import match_images
from engine.masks.instances import Instances
from engine.store.pseudo_labels import Version
from engine.store.selection import SelectionConfig, select_outcomes
from engine.types import Outcome

__all__ = [
    "EvaluatedImage",
    "Evaluation",
    "EvaluationProtocol",
    "KindResult",
    "digest_ground_truth",
    "evaluate",
    "evaluate_version",
]


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """By which rules instances are measured. Figures compare only where these are the same."""

    max_detections: int = 100
    """AP, and all that is said of single images and of scores, sees the best so many instances of each."""
    recall_detections: tuple[int, ...] = (1, 10, 100, 1000)
    """AR is measured with each of these numbers of instances of an image."""
    score: Literal["score", "stability", "none"] = "score"
    """What instances are ranked by: R(M), stability, or nothing: all equal, in the order of the store."""
    selection: Annotated[SelectionConfig, tyro.conf.arg(name="")] = field(default_factory=SelectionConfig)
    """Which of the instances are measured."""

    def __post_init__(self) -> None:
        if min(self.max_detections, *self.recall_detections, 1) < 1 or not self.recall_detections:
            raise ConfigurationError(
                "max_detections and recall_detections are numbers of instances, at least 1 each"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What was measured, and on which images.

    `absent` are the names of the truth's images that have no row in the store, `resized` of those that were
    labelled at another size than the truth's; neither count.
    """

    protocol: EvaluationProtocol
    images: tuple[EvaluatedImage, ...]
    boxes: KindResult
    masks: KindResult
    absent: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Digest of the protocol and the ground truth, 12 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.describe_protocol(), sort_keys=True).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON can hold it; `figures` of boxes and masks come first."""
        kinds = {"boxes": self.boxes, "masks": self.masks}
        return {
            **{name: kind.figures for name, kind in kinds.items()},
            "protocol": self.describe_protocol(),
            "score_to_iou": {name: asdict(kind.score_relation) for name, kind in kinds.items()},
            "images": [
                {
                    "image": image.truth.path,
                    "objects": image.truth.num_objects,
                    "instances": len(image.instances or ()),
                    **{name: asdict(kind.recalls[i]) for name, kind in kinds.items()},
                }
                for i, image in enumerate(self.images)
            ],
        }

    def describe_protocol(self) -> dict[str, Any]:
        """The protocol, and the ground truth that it was applied to, as JSON can hold them."""
        truths = [image.truth for image in self.images]
        return {
            **asdict(self.protocol),
            "recall_detections": list(self.protocol.recall_detections),
            "ground_truth": {
                "digest": digest_ground_truth(truths),
                "images": len(truths),
                "objects": sum(truth.num_objects for truth in truths),
                "images_absent": len(self.absent),
                "images_resized": len(self.resized),
            },
        }


def evaluate(images: Sequence[EvaluatedImage], protocol: EvaluationProtocol) -> Evaluation:
    """Measure images whose instances have been selected already.

    An image without instances counts with what was to be found in it. Equal scores rank in the order of
    `images`, within an image in that of its instances.
    """
    ranked = [replace(image, instances=_rank(image.instances, protocol)) for image in images]
    boxes, masks = (
        measure(ranked, kind, protocol.max_detections, protocol.recall_detections)
        for kind in ("bbox", "segm")
    )
    return Evaluation(protocol=protocol, images=tuple(images), boxes=boxes, masks=masks)


def evaluate_version(
    version: Version, truths: Iterable[AnnotatedImage], protocol: EvaluationProtocol
) -> Evaluation:
    """Measure a version of labels on those images of the truth that it has rows for.

    Of the store one shard is in memory at a time, and what is in the truth. An image that was rejected counts
    as one without instances. Raises CorpusError where few or no images are those of the truth, StoreError
    where the protocol asks for a stability that was never measured.
    """
    held = list(truths)
    rows = ((outcome.record, outcome) for outcome in select_outcomes(version, protocol.selection))
    matches = match_images(rows, held)
    fitting = [match for match in matches if _size(match.item) in (None, match.truth.size)]
    if not fitting:
        truth, outcome = matches[0].truth, matches[0].item
        raise CorpusError(
            f"the ground truth has images of other sizes: {truth.path!r} is {truth.size} there, "
            f"{_size(outcome)} in the store; give the ground truth of these images"
        )
    matched, measured = ({id(match.truth) for match in some} for some in (matches, fitting))
    images = [EvaluatedImage(truth=match.truth, instances=match.item.instances) for match in fitting]
    return replace(
        evaluate(images, protocol),
        absent=tuple(truth.path for truth in held if id(truth) not in matched),
        resized=tuple(match.truth.path for match in matches if id(match.truth) not in measured),
    )


def _size(outcome: Outcome) -> tuple[int, int] | None:
    """(height, width) where it is known."""
    return None if outcome.height is None or outcome.width is None else (outcome.height, outcome.width)


def digest_ground_truth(truths: Iterable[AnnotatedImage]) -> str:
    """SHA-256 in hex of annotated images: names, sizes and all that was drawn, in their order."""
    digest = hashlib.sha256()
    for truth in truths:
        head = [truth.coco_id, truth.path, truth.size, [rle.decode("ascii") for rle in truth.rles]]
        drawn = [truth.boxes_xywh.tolist(), truth.areas.tolist(), truth.is_crowd.tolist()]
        digest.update(json.dumps([head, drawn]).encode())
    return digest.hexdigest()


def _rank(instances: Instances | None, protocol: EvaluationProtocol) -> Instances | None:
    """The instances with what they are ranked by as their scores."""
    if instances is None or protocol.score == "score":
        return instances
    if protocol.score == "none":
        return replace(instances, scores=np.ones(len(instances), np.float32))
    if np.isnan(instances.stabilities).any():
        raise StoreError("some instances have no stability to rank by: take a round that has measured it")
    return replace(instances, scores=instances.stabilities)
