"""What a round of labels comes to: how many, how stable, how far from the round before, how good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.evaluation.ground_truth import AnnotatedImage
from engine.evaluation.protocol import EvaluationProtocol, evaluate_version
from engine.selftraining.change import label_change
from engine.selftraining.rounds import SelfTrainingConfig
from engine.store.pseudo_labels import Version
from engine.store.selection import kept_instances, plan_selection, select_outcomes


@dataclass(frozen=True, kw_only=True)
class RoundMetrics:
    """A round in numbers: its images with a mask, its masks, and how many of them are learned from.

    `mean_stability` is None where none was measured, `change`, the share of the labels that is new since the
    round before, in the first round, and the APs, 0 to 1, without a ground truth.
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
    """Measure a version, and against the one that it was made from; an evaluation is kept in the store.

    One shard of each is in memory at a time. Raises CorpusError where the ground truth is of other images.
    """
    number = version.info.round
    selection = plan_selection(version, config.selection_of(number))
    labelled, masks, learned = 0, 0, 0
    stability, measured = 0.0, 0
    for columns in version.columns():
        kept = kept_instances(selection, columns.offsets, columns.scores, columns.stabilities)
        known = columns.stabilities[np.isfinite(columns.stabilities)]
        labelled += int(np.count_nonzero(columns.counts))
        masks += len(kept)
        learned += int(np.count_nonzero(kept))
        stability += float(known.sum(dtype=np.float64))
        measured += len(known)
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


def _precisions(version: Version, truths: Sequence[AnnotatedImage]) -> tuple[float | None, float | None]:
    """AP of masks and boxes, by the protocol that jobs/evaluate.py has by default."""
    evaluation = evaluate_version(version, truths, EvaluationProtocol())
    content = {**evaluation.to_json(), "version": version.name, "round": version.info.round}
    version.record_evaluation(evaluation.digest, content)
    return evaluation.masks.metrics["AP"], evaluation.boxes.metrics["AP"]
