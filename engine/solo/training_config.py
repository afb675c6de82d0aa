"""Configuration of a SOLO training; importing this does not import the network's libraries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from engine.bounds import Bounded, Bounds, Count
from engine.errors import ConfigurationError
from engine.solo.config import SoloConfig
from engine.solo.objective import ObjectiveConfig
from engine.solo.samples import SampleConfig, SampleTask
from engine.store.selection import SelectionConfig
from engine.training.schedule import OptimiserConfig


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Bounded):
    """Everything that decides the result of a training."""

    steps: Count = 90_000
    """Steps to train for."""
    batch_size: Count = 16
    """Images per step, over all workers together."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast dtype of the forward pass; weights, losses and optimiser stay in float32."""
    deterministic: bool = False
    """Use only operations that give the same bits every time; slower on GPUs."""
    keep_empty: bool = False
    """Include images without instances as negatives."""
    held_out: Annotated[float, Bounds(0, 1, "a share", below=True)] = 0.0
    """Share of the images that is kept from training and measured on, see --ground-truth."""
    snapshots: Count = 4
    """Networks to keep along the run, at equal distances; the last one is the result."""
    seed: Annotated[int, Bounds(0, 2**63 - 1, "a seed")] = 0
    """Seed of sample order and augmentation."""
    solo: SoloConfig = field(default_factory=SoloConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    ignore_above_score: float | None = None
    """Instances that `selection` leaves out, but with at least this score, are ignored: neither learned nor
    background. By default everything that is not selected is background."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.snapshots > self.steps:
            raise ConfigurationError(
                f"snapshots are at most as many as steps, got {self.snapshots} for {self.steps} steps"
            )

    @property
    def sample_task(self) -> SampleTask:
        """What samples must hold for this network and these losses."""
        return SampleTask(
            config=self.samples,
            side=self.solo.image_size,
            grid=self.solo.grid,
            superpixel_loss=self.objective.superpixel_loss if self.objective.needs_superpixels else None,
            adaptive_loss=self.objective.adaptive_loss if self.objective.needs_stability else None,
            seed=self.seed,
        )

    @property
    def snapshot_steps(self) -> tuple[int, ...]:
        """The steps after which a network is kept, rising; the last one is the end of the run.

        >>> TrainingConfig(steps=10, snapshots=4).snapshot_steps
        (3, 5, 8, 10)
        """
        return tuple(-(-number * self.steps // self.snapshots) for number in range(1, self.snapshots + 1))
