"""How learning rate, weight decay, teacher momentum and temperature move along a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.errors import ConfigurationError

# DINO states learning rates for this many images a step (Caron et al., 2021, section 3.2).
_REFERENCE_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW and its schedules; defaults are DINO's but for the shorter warm-up."""

    learning_rate: float = 5e-4
    """Peak for 256 images a step; it is scaled linearly with the batch."""
    final_learning_rate: float = 1e-6
    """Where its cosine ends; not scaled."""
    warmup_share: float = 0.05
    """Part of the run in which the learning rate rises."""
    weight_decay: float = 0.04
    """At the start of its cosine; biases, norms and position embeddings have none."""
    final_weight_decay: float = 0.4
    """At its end."""
    clip_norm: float = 3.0
    """Longest gradient of each parameter, clipped one by one as in the release."""
    teacher_momentum: float = 0.996
    """Of the teacher's moving average at the start; a cosine takes it to 1."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "clip_norm"):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"optimiser.{name} must be above 0, got {getattr(self, name)}")
        for name in ("final_learning_rate", "weight_decay", "final_weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"optimiser.{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.warmup_share < 1:
            raise ConfigurationError(f"optimiser.warmup_share is a share below 1, got {self.warmup_share}")
        if not 0 <= self.teacher_momentum < 1:
            raise ConfigurationError(
                f"optimiser.teacher_momentum must be in [0, 1), got {self.teacher_momentum}"
            )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the schedules say at one moment."""

    learning_rate: float
    weight_decay: float
    teacher_momentum: float


def settings_at(progress: float, batch_size: int, config: OptimiserConfig) -> Settings:
    """The schedules' values when the share `progress`, 0 to 1, of the run is done.

    >>> config = OptimiserConfig(learning_rate=1.0, warmup_share=0.5, final_learning_rate=0.0)
    >>> [round(settings_at(progress, 128, config).learning_rate, 3) for progress in (0, 0.25, 0.5, 0.75, 1)]
    [0.0, 0.25, 0.5, 0.25, 0.0]
    """
    peak = config.learning_rate * batch_size / _REFERENCE_BATCH
    if progress < config.warmup_share:
        rate = peak * progress / config.warmup_share
    else:
        rest = (progress - config.warmup_share) / (1 - config.warmup_share)
        rate = cosine(peak, config.final_learning_rate, rest)
    return Settings(
        learning_rate=rate,
        weight_decay=cosine(config.weight_decay, config.final_weight_decay, progress),
        teacher_momentum=cosine(config.teacher_momentum, 1.0, progress),
    )


def cosine(start: float, end: float, progress: float) -> float:
    """From `start` to `end` along half a cosine.

    >>> cosine(4.0, 0.0, 0.5)
    2.0
    """
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
