"""Configuration of self-training: the training and the prediction of each round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from engine.bounds import Bounded, Count, Positive, Share
from engine.errors import ConfigurationError
from engine.images.tiling import TilingConfig
from engine.labelling.config import LabellingConfig, NetworkConfig
from engine.solo.training_config import TrainingConfig
from engine.store.selection import SelectionConfig

LaterLoss = Literal["adaptive", "pixel", "superpixel"]


@dataclass(frozen=True, kw_only=True)
class LaterRoundsConfig(Bounded):
    """Differences between trainings on predicted labels and the first one, on labels of another method."""

    loss: LaterLoss = "adaptive"
    """Weighted by stability and boundary distance (the paper's); unweighted pixels; or as the first round."""
    begin: Literal["previous", "scratch"] = "previous"
    """Start from the network of the round before, or from scratch as the first round does."""
    steps: Count | None = None
    """Steps to train for; default: as in the first round."""
    learning_rate: Positive | None = None
    """Peak of the learning rate; default: as in the first round."""
    selection: SelectionConfig = field(default_factory=lambda: SelectionConfig(min_score=0.3))
    """Predicted instances to learn from; scores are the network's, 0 to 1. After 300 steps on PennFudan, 31 %
    of all masks are right (IoU of 0.5), and 75 % of those with a score of 0.3 or more."""
    ignore_above_score: float | None = 0.1
    """Instances that are left out, but with at least this score, are no background either: a young network
    finds less than half of the objects with a score of 0.3. With half of PennFudan's masks missing, a second
    round ends with mask AP 16.6 instead of 15.9; with all masks, with 12.3 instead of 12.5."""


@dataclass(frozen=True, kw_only=True)
class PredictionConfig(Bounded):
    """Labelling by a trained network; detection is configured with the network (solo.detection)."""

    batch_size: Count = 8
    """Images per forward pass."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast dtype of the forward pass."""
    tiling: Annotated[TilingConfig, tyro.conf.arg(name="")] = field(default_factory=TilingConfig)


@dataclass(frozen=True, kw_only=True)
class SelfTrainingConfig(Bounded):
    """Everything that decides the results of self-training."""

    rounds: Count = 2
    """Rounds of labels to make after round 0: a network learns each round and predicts the next. The paper
    has 2: the first network learns from superpixels, the second by stability."""
    min_change: Share = 0.05
    """Stop when the labels change less than this from one round to the next: 1 - the mean over all learned
    instances of both rounds of the best IoU with the other round. 0 never stops."""
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(default_factory=TrainingConfig)
    later: LaterRoundsConfig = field(default_factory=LaterRoundsConfig)
    predict: PredictionConfig = field(default_factory=PredictionConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training.objective.needs_stability:
            raise ConfigurationError(
                "the labels of round 0 have no stability: set objective.mask_term to superpixel or pixel, "
                "and later.loss for the rounds after it"
            )
        if self.training.snapshots < 2:
            raise ConfigurationError(
                "stability is the agreement of a training's networks: set snapshots to 2 or more, got "
                f"{self.training.snapshots}"
            )
        # So that a configuration of later rounds that does not fit fails now.
        self.training_of(1)

    def training_of(self, round_number: int) -> TrainingConfig:
        """The configuration of the training on a round's labels.

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
        """The instances of a round that are learned from."""
        return self.training_of(round_number).selection

    def labelling(self, networks: Sequence[str]) -> LabellingConfig:
        """The configuration of labelling by the last of `networks` (URIs), with stability over the others."""
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
        """Whether labels with this change since the round before need no further round; None is round 0.

        >>> [SelfTrainingConfig(min_change=0.1).has_settled(change) for change in (None, 0.2, 0.09)]
        [False, False, True]
        """
        return change is not None and change < self.min_change
