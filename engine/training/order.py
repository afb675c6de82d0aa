"""The order of samples: a pure function of the seed, so that a run's position is one number, its step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class SampleNumber(NamedTuple):
    """A sample of a data set, as it is augmented in an epoch."""

    epoch: int
    sample: int


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_samples: int) -> NDArray[np.int64]:
    """The order of samples in an epoch, int64 (num_samples,).

    >>> sorted(epoch_order(0, 3, 4).tolist())
    [0, 1, 2, 3]
    """
    return np.random.default_rng([seed, epoch]).permutation(num_samples)


def batch_numbers(
    seed: int, num_samples: int, batch_size: int, steps: Iterable[int], part: slice
) -> Iterator[list[SampleNumber]]:
    """The samples of each step's batch, or of the `part` of it that is one worker's.

    Epochs follow one another without a gap: no sample is dropped at an epoch's end, and a data set that is
    smaller than a batch fills it several times.

    >>> steps = batch_numbers(0, num_samples=3, batch_size=2, steps=range(3), part=slice(None))
    >>> [number.epoch for batch in steps for number in batch]
    [0, 0, 0, 1, 1, 1]
    """
    for step in steps:
        positions = range(step * batch_size, (step + 1) * batch_size)[part]
        places = (divmod(position, num_samples) for position in positions)
        yield [
            SampleNumber(epoch, int(epoch_order(seed, epoch, num_samples)[place])) for epoch, place in places
        ]
