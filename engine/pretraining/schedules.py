"""Learning rate, weight decay and teacher momentum over a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from engine.bounds import Bounded, Bounds, NotNegative, Positive

# DINO's learning rates are for this batch size (Caron et al., 2021, section 3.2).
_REFERENCE_BATCH = 256
_Part = Annotated[float, Bounds(0, 1, "a share", below=True)]


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig(Bounded):
    """AdamW and its schedules; DINO's defaults, except for a shorter warm-up."""

    learning_rate: Positive = 5e-4
    """Peak for a batch of 256 images; it scales linearly with the batch size."""
    final_learning_rate: NotNegative = 1e-6
    """End of the learning rate's cosine; not scaled."""
    warmup_share: _Part = 0.05
    """Share of the run over which the learning rate rises."""
    weight_decay: NotNegative = 0.04
    """Start of the weight decay's cosine; biases, norms and position embeddings have no decay."""
    final_weight_decay: NotNegative = 0.4
    """End of the weight decay's cosine."""
    clip_norm: Positive = 3.0
    """Largest gradient norm of each parameter tensor, clipped one by one as in the release."""
    teacher_momentum: _Part = 0.996
    """Momentum of the teacher's moving average at the start; a cosine takes it to 1."""


@dataclass(frozen=True, kw_only=True)
class ScheduledValues:
    """The values of all schedules at one step."""

    learning_rate: float
    weight_decay: float
    teacher_momentum: float


def schedules_at(progress: float, batch_size: int, config: OptimiserConfig) -> ScheduledValues:
    """The schedules' values after the share `progress`, 0 to 1, of the run.

    >>> config = OptimiserConfig(learning_rate=1.0, warmup_share=0.5, final_learning_rate=0.0)
    >>> [round(schedules_at(progress, 128, config).learning_rate, 3) for progress in (0, 0.25, 0.5, 0.75, 1)]
    [0.0, 0.25, 0.5, 0.25, 0.0]
    """
    peak = config.learning_rate * batch_size / _REFERENCE_BATCH
    if progress < config.warmup_share:
        rate = peak * progress / config.warmup_share
    else:
        rest = (progress - config.warmup_share) / (1 - config.warmup_share)
        rate = cosine(peak, config.final_learning_rate, rest)
    return ScheduledValues(
        learning_rate=rate,
        weight_decay=cosine(config.weight_decay, config.final_weight_decay, progress),
        teacher_momentum=cosine(config.teacher_momentum, 1.0, progress),
    )


def cosine(start: float, end: float, progress: float) -> float:
    """The value at `progress`, 0 to 1, on half a cosine from `start` to `end`.

    >>> cosine(4.0, 0.0, 0.5)
    2.0
    """
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
