"""Metrics of a round of labels: number, stability, change since the round before, and precision."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from engine.errors import ObjectMissing
from engine.evaluation.ground_truth import AnnotatedImage
from engine.evaluation.protocol import EvaluationProtocol, evaluate_version
from engine.objects.object_store import ObjectStore
from engine.selftraining.change import label_change
from engine.selftraining.rounds import SelfTrainingConfig
from engine.solo.training_output import labels_fingerprint
from engine.store.pseudo_labels import Version
from engine.store.selection import kept_instances, plan_selection, select_outcomes


@dataclass(frozen=True, kw_only=True)
class RoundMetrics:
    """Metrics of one round: images with a mask, masks, and masks that are learned from.

    `mean_stability` is None if none was measured; `change`, the distance to the labels of the round before, 0
    to 1, is None for round 0; the APs, 0 to 1, are None without ground truth.
    """

    round: int
    version: str
    labelled: int
    masks: int
    learned: int
    mean_stability: float | None
    change: float | None
    mask_ap: float | None
    box_ap: float | None


def measure_round(
    version: Version,
    before: Version | None,
    config: SelfTrainingConfig,
    truths: Sequence[AnnotatedImage] | None,
) -> RoundMetrics:
    """Measure a version, and its change since `before`; the evaluation is also recorded in the store.

    One shard of each is in memory at a time. Raises CorpusError if the ground truth is of other images.
    """
    number = version.info.round
    selection = plan_selection(version, config.selection_of(number))
    labelled, masks, learned = 0, 0, 0
    stability, measured = 0.0, 0
    for columns in version.columns():
        kept = kept_instances(selection, columns.offsets, columns.scores, columns.stabilities)
        finite = columns.stabilities[np.isfinite(columns.stabilities)]
        labelled += int(np.count_nonzero(columns.counts))
        masks += len(kept)
        learned += int(np.count_nonzero(kept))
        stability += float(finite.sum(dtype=np.float64))
        measured += len(finite)
    change = None
    if before is not None:
        change = label_change(
            select_outcomes(before, config.selection_of(before.info.round)),
            select_outcomes(version, config.selection_of(number)),
        )
    mask_ap, box_ap = _precisions(version, truths) if truths is not None else (None, None)
    return RoundMetrics(
        round=number,
        version=version.name,
        labelled=labelled,
        masks=masks,
        learned=learned,
        mean_stability=stability / measured if measured else None,
        change=change,
        mask_ap=mask_ap,
        box_ap=box_ap,
    )


def recall_metrics(output: ObjectStore, key: str, measured: dict[str, Any]) -> RoundMetrics | None:
    """Metrics stored under `key` by `keep_metrics`, or None if they are of something else than `measured`."""
    try:
        stored = json.loads(output.read(key))
    except ObjectMissing:
        return None
    # Earlier versions stored metrics under another name.
    is_same = stored.get("measured") == measured and "metrics" in stored
    return RoundMetrics(**stored["metrics"]) if is_same else None


def keep_metrics(output: ObjectStore, key: str, measured: dict[str, Any], metrics: RoundMetrics) -> None:
    """Store metrics with what they were `measured` on."""
    content = {"measured": measured, "metrics": asdict(metrics)}
    output.write(key, (json.dumps(content, indent=1) + "\n").encode())


def describe_measurement(
    version: Version, before: Version | None, config: SelfTrainingConfig, ground_truth: str | None
) -> dict[str, Any]:
    """Everything that a round's metrics depend on, as JSON holds it."""
    selections = [config.selection_of(found.info.round) for found in (before or version, version)]
    return {
        "before": labels_fingerprint(before) if before is not None else None,
        "labels": labels_fingerprint(version),
        "selections": [asdict(selection) for selection in selections],
        "ground_truth": ground_truth,
    }


def _precisions(version: Version, truths: Sequence[AnnotatedImage]) -> tuple[float | None, float | None]:
    """AP of masks and boxes under the default protocol."""
    evaluation = evaluate_version(version, truths, EvaluationProtocol())
    content = {**evaluation.to_json(), "version": version.name, "round": version.info.round}
    version.record_evaluation(evaluation.digest, content)
    return evaluation.masks.metrics["AP"], evaluation.boxes.metrics["AP"]
