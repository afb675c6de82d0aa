"""Holistic stability: how far the checkpoints of one training agree on an instance, and what it then weighs.

Source: arXiv 2509.05352, section 3.3, equation 10. The choice of the best match and epsilon are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engine.masks.instances import Instances
from engine.masks.rle import cross_ious


@dataclass(frozen=True, kw_only=True)
class StabilityRange:
    """The least and the greatest stability among the instances of a store."""

    least: float
    greatest: float


def holistic_stability(last: Instances, earlier: Sequence[Instances]) -> NDArray[np.float32]:
    """Z_i = sum_j IoU(m_i, m_ji) of each of N instances, float32 (N,), 0 to len(earlier).

    `last` are what the last checkpoint found in an image, `earlier` what each of the checkpoints before it
    found there; m_ji is the one of checkpoint j that fits i best, and where it found nothing the IoU is 0.
    """
    total = np.zeros(len(last), np.float64)
    for found in earlier:
        total += cross_ious(last.rles, found.rles, last.size).max(axis=1, initial=0)
    return total.astype(np.float32)


def with_stability(last: Instances, earlier: Sequence[Instances]) -> Instances:
    """The instances of the last checkpoint with their stability over the ones before it."""
    return replace(last, stabilities=holistic_stability(last, earlier))


def stability_range(columns: Iterable[NDArray[np.float32]]) -> StabilityRange | None:
    """The range of stabilities that come in pieces of any length, in one pass; None without any.

    What was never measured is NaN and left out.

    >>> stability_range([np.float32([1.5, np.nan]), np.float32([]), np.float32([0.5, 2.0])])
    StabilityRange(least=0.5, greatest=2.0)
    """
    least, greatest = np.inf, -np.inf
    for column in columns:
        measured = column[np.isfinite(column)]
        least = min(least, float(measured.min(initial=np.inf)))
        greatest = max(greatest, float(measured.max(initial=-np.inf)))
    return StabilityRange(least=least, greatest=greatest) if least <= greatest else None


def stability_weights(
    stabilities: NDArray[np.float32], whole: StabilityRange, epsilon: float
) -> NDArray[np.float32]:
    """(Z_i - min + epsilon) / (max - min + epsilon) with the range of the `whole` store: float32 (N,), in
    (0, 1]; all 1 where all instances of the store are equally stable.

    >>> whole = StabilityRange(least=1.0, greatest=2.0)
    >>> stability_weights(np.float32([1.0, 2.0]), whole, epsilon=0.25).tolist()
    [0.20000000298023224, 1.0]
    """
    weights = (stabilities - whole.least + epsilon) / (whole.greatest - whole.least + epsilon)
    return weights.astype(np.float32)
