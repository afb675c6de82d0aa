"""What each round of self-training is trained with and predicts with, and when there is nothing to gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from engine.errors import ConfigurationError
from engine.images.tiling import TilingConfig
from engine.labelling.config import LabellingConfig, NetworkConfig
from engine.solo.training import TrainingConfig
from engine.store.selection import SelectionConfig

LaterLoss = Literal["adaptive", "pixel", "superpixel"]


@dataclass(frozen=True, kw_only=True)
class LaterRoundsConfig:
    """How trainings on predicted labels differ from the first one, which is on labels of another method."""

    loss: LaterLoss = "adaptive"
    """By stability and boundary distance (the paper's); pixel by pixel, all alike; or as the first round."""
    begin: Literal["previous", "scratch"] = "previous"
    """Go on from the network of the round before, or begin as the first round does."""
    steps: int | None = None
    """Steps to train for; by default as many as in the first round."""
    learning_rate: float | None = None
    """Peak of the learning rate; by default as in the first round."""
    selection: SelectionConfig = field(default_factory=lambda: SelectionConfig(min_score=0.3))
    """Which of the predicted instances are learned from; scores are the network's own, 0 to 1. After 300
    steps on PennFudan 31 % of all masks are right (IoU of 0.5), and 75 % of those with 0.3 or more."""
    ignore_above_score: float | None = 0.1
    """What is left out and has this score at least is not taught as background either: a young network finds
    less than half of the objects with a score of 0.3. A second round on PennFudan, half of whose masks were
    missing, ends with mask AP 16.6, and 15.9 without; 12.3 and 12.5 where all were there."""


@dataclass(frozen=True, kw_only=True)
class PredictionConfig:
    """How a trained network labels; detection is as --solo.detection says."""

    batch_size: int = 8
    """Images in one forward pass."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the network."""
    tiling: Annotated[TilingConfig, tyro.conf.arg(name="")] = field(default_factory=TilingConfig)


@dataclass(frozen=True, kw_only=True)
class SelfTrainingConfig:
    """Everything that decides what self-training gives."""

    rounds: int = 2
    """Rounds of labels to make from those of round 0: a network learns from each and predicts the next. The
    paper's is 2: of the networks, the first learns from superpixels and the second from stability."""
    min_change: float = 0.05
    """Stop when less than this share of the labels changes from one round to the next: 1 - the mean IoU of
    every instance that is learned from, of both rounds, with the best fitting one of the other. 0 never
    stops."""
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(default_factory=TrainingConfig)
    later: LaterRoundsConfig = field(default_factory=LaterRoundsConfig)
    predict: PredictionConfig = field(default_factory=PredictionConfig)

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigurationError(f"rounds is at least 1, got {self.rounds}")
        if not 0 <= self.min_change <= 1:
            raise ConfigurationError(f"min_change is a share, 0 to 1, got {self.min_change}")
        if self.training.objective.needs_stability:
            raise ConfigurationError(
                "the labels of round 0 have no stability: give objective.mask_term superpixel or pixel, and "
                "later.loss for the rounds after it"
            )
        if self.training.snapshots < 2:
            raise ConfigurationError(
                "stability is how far the networks of one training agree: give --snapshots 2 or more, got "
                f"{self.training.snapshots}"
            )
        # What it is made of answers at once for what the later rounds are given.
        self.training_of(1)

    def training_of(self, round_number: int) -> TrainingConfig:
        """What the labels of a round are learned with.

        >>> SelfTrainingConfig().training_of(0).objective.mask_term
        'superpixel'
        >>> SelfTrainingConfig().training_of(1).objective.mask_term
        'adaptive'
        """
        first, later = self.training, self.later
        if round_number == 0:
            return first
        objective = first.objective
        if later.loss != "superpixel":
            objective = replace(objective, mask_term=later.loss, soft_weight=0.0)
        optimiser = first.optimiser
        if later.learning_rate is not None:
            optimiser = replace(optimiser, learning_rate=later.learning_rate)
        steps = first.steps if later.steps is None else later.steps
        return replace(
            first,
            steps=steps,
            objective=objective,
            optimiser=optimiser,
            selection=later.selection,
            ignore_above_score=later.ignore_above_score,
        )

    def selection_of(self, round_number: int) -> SelectionConfig:
        """Which instances of a round are learned from."""
        return self.training_of(round_number).selection

    def labelling(self, networks: Sequence[str]) -> LabellingConfig:
        """How the last of some networks, given as URIs, labels, with its stability over those before it."""
        *earlier, last = networks
        return LabellingConfig(
            method="solo",
            network=NetworkConfig(
                weights=last,
                earlier_weights=tuple(earlier),
                batch_size=self.predict.batch_size,
                precision=self.predict.precision,
            ),
            detection=self.training.solo.detection,
            decoding=self.training.samples.decoding,
            tiling=self.predict.tiling,
        )

    def has_settled(self, change: float | None) -> bool:
        """Whether labels that change by so much from a round to the next are worth no further round; None is
        said of round 0, which comes from no other.

        >>> [SelfTrainingConfig(min_change=0.1).has_settled(change) for change in (None, 0.2, 0.09)]
        [False, False, True]
        """
        return change is not None and change < self.min_change
