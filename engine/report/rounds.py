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
    """One round: what it was made from, what it holds, and what evaluations found, by their digest.

    `mean_stability` is None where none was measured.
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
    """All rounds of a store, rising."""
    return [_read_round(store.version(number)) for number in store.rounds()]


def comparable_evaluations(rounds: list[Round]) -> str | None:
    """The evaluation (protocol and ground truth) that most rounds have; of several the first by digest."""
    digests = sorted({digest for found in rounds for digest in found.evaluations})
    return max(digests, key=lambda digest: sum(digest in found.evaluations for found in rounds), default=None)


def figure_of(found: Round, digest: str | None, kind: Literal["masks", "boxes"], name: str) -> float | None:
    """A figure of one of a round's evaluations; None where it has not this one or nothing was to be found."""
    evaluation = found.evaluations.get(digest) if digest is not None else None
    value = evaluation[kind].get(name) if evaluation is not None else None
    return None if value is None else float(value)


def recall_name(rounds: Sequence[Round], digest: str | None) -> str:
    """What the evaluation calls its recall with most instances an image, AR@100 by default."""
    names = {
        name
        for found in rounds
        if digest is not None and digest in found.evaluations
        for name in found.evaluations[digest]["masks"]
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
