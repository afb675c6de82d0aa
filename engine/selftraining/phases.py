"""Policy of self-training: what to do next, from what has been done."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from engine.errors import StoreError
from engine.selftraining.round_metrics import RoundMetrics
from engine.selftraining.rounds import SelfTrainingConfig


class Phase(StrEnum):
    """A round is measured, then learned, and its networks predict the next round's labels."""

    MEASURE = "measure"
    TRAIN = "train"
    PREDICT = "predict"
    SETTLED = "settled"
    """The labels hardly change any more: no further round."""
    FINISHED = "finished"
    """The configured number of rounds is done."""

    @property
    def is_work(self) -> bool:
        """Whether there is something to do in this phase."""
        return self in (Phase.MEASURE, Phase.TRAIN, Phase.PREDICT)


def next_phase(
    config: SelfTrainingConfig, measured: Sequence[RoundMetrics], num_labelled: int, num_trained: int
) -> Phase:
    """The phase after `num_labelled` rounds of labels, of which `num_trained` are learned.

    Round 0 counts as a round of labels. Raises StoreError if the last round has nothing to learn from.
    """
    if len(measured) < num_labelled:
        return Phase.MEASURE
    last = measured[-1]
    if last.round >= config.rounds:
        return Phase.FINISHED
    if config.has_settled(last.change):
        return Phase.SETTLED
    if last.learned == 0:
        name = "selection" if last.round == 0 else "later.selection"
        raise StoreError(
            f"none of the {last.masks} masks of {last.version} is learned from: lower {name}.min_score and "
            "the like, or train the round before for longer"
        )
    return Phase.TRAIN if num_trained < num_labelled else Phase.PREDICT
