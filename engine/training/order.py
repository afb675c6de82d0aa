"""Order of samples as a pure function of the seed, so that a run's position is one number: its step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class SampleNumber(NamedTuple):
    """A sample's epoch, which decides its augmentation, and its index in the data set."""

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
    """The samples of each step's batch, or those of one worker's `part` of it.

    Batches run across the ends of epochs: no sample is dropped, and a data set smaller than a batch fills it
    several times.

    >>> steps = batch_numbers(0, num_samples=3, batch_size=2, steps=range(3), part=slice(None))
    >>> [number.epoch for batch in steps for number in batch]
    [0, 0, 0, 1, 1, 1]
    """
    for step in steps:
        positions = range(step * batch_size, (step + 1) * batch_size)[part]
        yield [_sample_at(position, seed, num_samples) for position in positions]


def _sample_at(position: int, seed: int, num_samples: int) -> SampleNumber:
    epoch, index = divmod(position, num_samples)
    return SampleNumber(epoch, int(epoch_order(seed, epoch, num_samples)[index]))
