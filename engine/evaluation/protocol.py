"""Evaluate stored instances against ground truth: class-agnostic AP and AR of boxes and masks, as in COCO."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from engine.bounds import Bounded, Count
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
    "evaluate",
    "evaluate_version",
]


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol(Bounded):
    """Rules of an evaluation. Metrics are comparable only under the same rules."""

    max_detections: Count = 100
    """Detections per image used for AP and per-image statistics."""
    recall_detections: tuple[Count, ...] = (1, 10, 100, 1000)
    """AR is measured with each of these numbers of detections per image."""
    score: Literal["score", "stability", "none"] = "score"
    """Rank instances by score, by stability, or not at all (all equal, in the order of the store)."""
    selection: Annotated[SelectionConfig, tyro.conf.arg(name="")] = field(default_factory=SelectionConfig)
    """The instances to evaluate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.recall_detections:
            raise ConfigurationError("recall_detections is empty: give at least one number of detections")


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Metrics under one protocol, and the images that they were measured on.

    Two groups of annotated images do not count and are named instead: `absent` ones have no row in the store,
    `resized` ones were labelled at another size than their annotation's.
    """

    protocol: EvaluationProtocol
    images: tuple[EvaluatedImage, ...]
    boxes: KindResult
    masks: KindResult
    absent: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Digest of the protocol and the ground truth: 12 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.describe_protocol(), sort_keys=True).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary; the metrics of boxes and masks come first."""
        kinds = {"boxes": self.boxes, "masks": self.masks}
        return {
            **{name: kind.metrics for name, kind in kinds.items()},
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
        """The protocol and a summary of the ground truth, as a JSON-serialisable dictionary."""
        truths = [image.truth for image in self.images]
        return {
            **asdict(self.protocol),
            "recall_detections": list(self.protocol.recall_detections),
            "ground_truth": {
                "digest": _digest_ground_truth(truths),
                "images": len(truths),
                "objects": sum(truth.num_objects for truth in truths),
                "images_absent": len(self.absent),
                "images_resized": len(self.resized),
            },
        }


def evaluate(images: Sequence[EvaluatedImage], protocol: EvaluationProtocol) -> Evaluation:
    """Evaluate images whose instances are already selected.

    The objects of an image without instances count as missed. Ties in score keep the order of `images`, then
    of their instances.
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
    """Evaluate a version of labels on the annotated images that it has rows for.

    One shard at a time is in memory, along with the rows of annotated images. A rejected image counts as one
    without instances. Raises CorpusError if few or no images match the ground truth, StoreError if the
    protocol ranks or selects by a stability that was never measured.
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
    matched, measured = ({id(match.truth) for match in group} for group in (matches, fitting))
    images = [EvaluatedImage(truth=match.truth, instances=match.item.instances) for match in fitting]
    return replace(
        evaluate(images, protocol),
        absent=tuple(truth.path for truth in held if id(truth) not in matched),
        resized=tuple(match.truth.path for match in matches if id(match.truth) not in measured),
    )


def _size(outcome: Outcome) -> tuple[int, int] | None:
    """(height, width), or None if unknown."""
    return None if outcome.height is None or outcome.width is None else (outcome.height, outcome.width)


def _digest_ground_truth(truths: Iterable[AnnotatedImage]) -> str:
    """SHA-256, in hex, of the annotated images in this order."""
    digest = hashlib.sha256()
    for truth in truths:
        head = [truth.coco_id, truth.path, truth.size, [rle.decode("ascii") for rle in truth.rles]]
        instances = [truth.boxes_xywh.tolist(), truth.areas.tolist(), truth.is_crowd.tolist()]
        digest.update(json.dumps([head, instances]).encode())
    return digest.hexdigest()


def _rank(instances: Instances | None, protocol: EvaluationProtocol) -> Instances | None:
    """The instances with the protocol's ranking values as their scores."""
    if instances is None or protocol.score == "score":
        return instances
    if protocol.score == "none":
        return replace(instances, scores=np.ones(len(instances), np.float32))
    if np.isnan(instances.stabilities).any():
        raise StoreError("cannot rank by stability: some instances have none; evaluate a round that has it")
    return replace(instances, scores=instances.stabilities)
