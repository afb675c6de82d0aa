"""The rounds of a store, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from engine.store.pseudo_labels import PseudoLabelStore, Version
from engine.store.version_info import VersionInfo


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round: its description, its counts, and its evaluations by digest.

    `mean_stability` is None if no stability was measured.
    """

    name: str
    info: VersionInfo
    is_finished: bool
    images: int
    labelled: int
    masks: int
    mean_stability: float | None
    evaluations: Mapping[str, Mapping[str, Any]]


def read_rounds(store: PseudoLabelStore) -> list[Round]:
    """All rounds of a store, in ascending order."""
    return [_read_round(store.version(number)) for number in store.rounds()]


def comparable_evaluations(rounds: list[Round]) -> str | None:
    """Digest of the evaluation (protocol and ground truth) that most rounds have, of equals the first."""
    digests = sorted({digest for item in rounds for digest in item.evaluations})
    return max(digests, key=lambda digest: sum(digest in item.evaluations for item in rounds), default=None)


def metric_of(item: Round, digest: str | None, kind: Literal["masks", "boxes"], name: str) -> float | None:
    """A metric of one of a round's evaluations; None if that is missing or no object is annotated."""
    evaluation = item.evaluations.get(digest) if digest is not None else None
    value = evaluation[kind].get(name) if evaluation is not None else None
    return None if value is None else float(value)


def recall_name(rounds: Sequence[Round], digest: str | None) -> str:
    """The name of the evaluation's recall with most detections per image; AR@100 without an evaluation."""
    names = {
        name
        for item in rounds
        if digest is not None and digest in item.evaluations
        for name in item.evaluations[digest]["masks"]
        if name.startswith("AR@")
    }
    return max(names, key=lambda name: int(name.removeprefix("AR@")), default="AR@100")


def _read_round(version: Version) -> Round:
    summaries = version.summaries()
    total, count = 0.0, 0
    for column in version.instance_columns("stability"):
        measured = column[np.isfinite(column)]
        total += float(measured.sum(dtype=np.float64))
        count += len(measured)
    return Round(
        name=version.name,
        info=version.info,
        is_finished=version.is_finished(),
        images=sum(summary.images for summary in summaries),
        labelled=sum(summary.labelled for summary in summaries),
        masks=sum(summary.instances for summary in summaries),
        mean_stability=total / count if count else None,
        evaluations=version.evaluations(),
    )
