"""SOLO's optimisers and learning rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from engine.bounds import Bounded, CountOrZero, NotNegative, Positive


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig(Bounded):
    """SGD with momentum and step decay, as SOLO is published, or AdamW, which suits small data sets."""

    kind: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum 0.9, or AdamW."""
    learning_rate: Positive = 0.01
    """Peak for a whole batch; published: 0.01 for 16 images with sgd."""
    warmup_steps: CountOrZero = 1000
    """Steps over which the learning rate rises from a hundredth of its peak."""
    schedule: Literal["steps", "cosine"] = "steps"
    """Step decay: a tenth after 3/4 and a hundredth after 11/12 of the run (published: after 27 and 33 of 36
    epochs). Or a cosine to 0."""
    weight_decay: NotNegative = 1e-4
    """Weight decay of convolutions and matrices; norms and biases have none."""
    clip_norm: Positive = 35.0
    """Largest norm of the gradient of all parameters together."""


def build_optimiser(network: nn.Module, config: OptimiserConfig) -> torch.optim.Optimizer:
    """Make the optimiser of all trained parameters; the learning rate is set before each step."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups: Iterable[dict[str, object]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.kind == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9)


def learning_rate_at(step: int, num_steps: int, config: OptimiserConfig) -> float:
    """The learning rate of a step, 0 to num_steps - 1.

    >>> config = OptimiserConfig(learning_rate=1.0, warmup_steps=2)
    >>> [round(learning_rate_at(step, 12, config), 4) for step in (0, 1, 2, 8, 9, 11)]
    [0.01, 0.505, 1.0, 1.0, 0.1, 0.01]
    """
    warmth = min(step / config.warmup_steps, 1.0) if config.warmup_steps > 0 else 1.0
    progress = step / num_steps
    if config.schedule == "cosine":
        factor = (1 + math.cos(math.pi * progress)) / 2
    else:
        factor = 0.01 if progress >= 11 / 12 else 0.1 if progress >= 3 / 4 else 1.0
    return config.learning_rate * factor * (0.01 + 0.99 * warmth)
