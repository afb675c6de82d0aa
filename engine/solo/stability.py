"""Holistic stability: agreement of a training's checkpoints on an instance, and the weight that follows.

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
    """Least and greatest stability among the instances of a store."""

    least: float
    greatest: float


def holistic_stability(last: Instances, earlier: Sequence[Instances]) -> NDArray[np.float32]:
    """Z_i = sum_j IoU(m_i, m_ji) of each of N instances, float32 (N,), 0 to len(earlier).

    `last` are the last checkpoint's instances in an image, `earlier` those of each checkpoint before it; m_ji
    is the instance of checkpoint j with the highest IoU. A checkpoint without instances counts as IoU 0.
    """
    total = np.zeros(len(last), np.float64)
    for found in earlier:
        total += cross_ious(last.rles, found.rles, last.size).max(axis=1, initial=0)
    return total.astype(np.float32)


def with_stability(last: Instances, earlier: Sequence[Instances]) -> Instances:
    """The last checkpoint's instances with their stability over the earlier checkpoints."""
    return replace(last, stabilities=holistic_stability(last, earlier))


def stability_range(columns: Iterable[NDArray[np.float32]]) -> StabilityRange | None:
    """Least and greatest stability over all columns, in one pass; None if none was measured.

    Unmeasured stabilities are NaN and ignored.

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
    """(Z_i - min + epsilon) / (max - min + epsilon), float32 (N,), in (0, 1].

    min and max are of the `whole` store; all weights are 1 if all its instances are equally stable.

    >>> whole = StabilityRange(least=1.0, greatest=2.0)
    >>> stability_weights(np.float32([1.0, 2.0]), whole, epsilon=0.25).tolist()
    [0.20000000298023224, 1.0]
    """
    weights = (stabilities - whole.least + epsilon) / (whole.greatest - whole.least + epsilon)
    return weights.astype(np.float32)
