"""Which of the stored instances a reader takes.

A store keeps every candidate with its score; training, export, evaluation and reports each cut at reading,
exactly and without labelling again (METHODS 3). All of them cut here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engine.errors import ConfigurationError, StoreError
from engine.masks.instances import Instances
from engine.store.columns import ShardColumns
from engine.store.pseudo_labels import Version
from engine.types import Outcome


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """What an instance must have to be taken; it must pass all that is given. By default all are taken."""

    min_score: float | None = None
    """The least score R(M)."""
    top_percent: float | None = None
    """Take this share of all instances of the store, in percent, by score; 60 is a good start."""
    min_stability: float | None = None
    """The least holistic stability Z; instances without one are left out."""
    max_per_image: int | None = None
    """At most so many instances of an image: the best of those that pass the rest."""

    def __post_init__(self) -> None:
        if self.top_percent is not None and not 0 < self.top_percent <= 100:
            raise ConfigurationError(f"top_percent is above 0 and at most 100, got {self.top_percent}")
        if self.max_per_image is not None and self.max_per_image < 1:
            raise ConfigurationError(f"max_per_image is at least 1 instance, got {self.max_per_image}")
        for name in ("min_score", "min_stability"):
            if getattr(self, name) is not None and math.isnan(getattr(self, name)):
                raise ConfigurationError(f"{name} is a number, got nan")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A configuration together with what it means for one store: `score_cut` is the least score within
    `top_percent`."""

    config: SelectionConfig
    score_cut: float = -math.inf


def plan_selection(version: Version, config: SelectionConfig) -> Selection:
    """What `config` means for this version: one pass over its scores where `top_percent` asks for it.

    Holds four bytes an instance. Raises StoreError where stability is asked for and was never measured.
    """
    if config.min_stability is not None:
        check_stability(version, "min_stability")
    if config.top_percent is None:
        return Selection(config=config)
    cut = score_cut(version.instance_columns("score"), config.top_percent)
    return Selection(config=config, score_cut=cut)


def check_stability(version: Version, what: str) -> None:
    """Raise StoreError where no instance has the stability that `what` needs."""
    if not any(np.isfinite(column).any() for column in version.instance_columns("stability")):
        raise StoreError(
            f"no instance of {version.name} has a stability, which {what} needs: leave it out, or take a "
            "round that has measured it"
        )


def score_cut(scores: Iterable[NDArray[np.float32]], top_percent: float) -> float:
    """The score of the last instance within the best `top_percent` of all, rounded up to a whole instance.

    `scores` come in pieces of any length. Whoever takes all scores from the cut on takes at least that share,
    and more only where several have the very score of the cut: ties are taken together, so that the order of
    the store decides nothing. Without any score, the cut is -inf.

    >>> score_cut([np.float32([0.5, 0.25]), np.float32([1.0, 0.25])], top_percent=50)
    0.5
    >>> score_cut([np.float32([0.5, 0.25]), np.float32([1.0, 0.25])], top_percent=51)
    0.25
    """
    everything = np.concatenate([np.zeros(0, np.float32), *scores])
    if len(everything) == 0:
        return -math.inf
    # Rounded, so that 7 % of 100 are 7 instances and not the 8 that 7.000000000000001 would make.
    num_taken = math.ceil(round(len(everything) * top_percent / 100, 6))
    position = len(everything) - max(num_taken, 1)
    return float(np.partition(everything, position)[position])


def kept_instances(
    selection: Selection,
    offsets: NDArray[np.int64],
    scores: NDArray[np.float32],
    stabilities: NDArray[np.float32],
) -> NDArray[np.bool_]:
    """Which of M instances of N images are taken, bool (M,).

    `scores` and `stabilities` are (M,); image i has the instances offsets[i] to offsets[i + 1], best first.

    >>> two = Selection(config=SelectionConfig(min_score=0.2, max_per_image=1))
    >>> scores = np.float32([0.1, 0.3, 0.3, 0.2])
    >>> kept_instances(two, np.array([0, 3, 4]), scores, scores).tolist()
    [False, True, False, True]
    """
    config = selection.config
    kept = scores >= selection.score_cut
    if config.min_score is not None:
        # In the precision that scores are stored in, so that 0.1 takes what is stored as 0.1.
        kept &= scores >= np.float32(config.min_score)
    if config.min_stability is not None:
        kept &= stabilities >= np.float32(config.min_stability)
    if config.max_per_image is not None:
        passed = np.cumsum(kept)
        passed_before_image = np.concatenate(([0], passed))[offsets[:-1]]
        kept &= passed - np.repeat(passed_before_image, np.diff(offsets)) <= config.max_per_image
    return kept


def select_columns(columns: ShardColumns, selection: Selection) -> ShardColumns:
    """The shard with the instances that are taken; every image stays."""
    return columns.keep_instances(
        kept_instances(selection, columns.offsets, columns.scores, columns.stabilities)
    )


def select_instances(instances: Instances, selection: Selection) -> Instances:
    """One image's instances that are taken."""
    offsets = np.array([0, len(instances)], np.int64)
    kept = kept_instances(selection, offsets, instances.scores, instances.stabilities)
    return instances.keep(kept)


def select_outcomes(version: Version, config: SelectionConfig) -> Iterator[Outcome]:
    """All rows of a version as a stream, each with the instances that are taken.

    A labelled image that keeps none stays labelled, with zero instances.
    """
    selection = plan_selection(version, config)
    for outcome in version.outcomes():
        if outcome.instances is None:
            yield outcome
        else:
            yield replace(outcome, instances=select_instances(outcome.instances, selection))
