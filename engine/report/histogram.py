"""Streaming histograms with constant memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Histogram:
    """Counts of values between fixed edges; values beyond the ends count in the first or last bin."""

    def __init__(self, edges: NDArray[np.floating]) -> None:
        self.edges = edges
        self.counts = np.zeros(len(edges) - 1, np.int64)

    def add(self, values: NDArray[Any]) -> None:
        """Count values; non-finite ones are ignored."""
        inside = np.clip(values[np.isfinite(values)], self.edges[0], self.edges[-1])
        self.counts += np.histogram(inside, self.edges)[0]

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def median(self) -> float:
        """The upper edge of the bin with the median; NaN without values."""
        if self.total == 0:
            return float("nan")
        middle = np.searchsorted(np.cumsum(self.counts), (self.total + 1) // 2)
        return float(self.edges[middle + 1])

    def share_below(self, value: float) -> float:
        """Share of values in bins that end at `value` or below, 0 to 1; 0 without values."""
        below = self.counts[self.edges[1:] <= value + 1e-9].sum()
        return float(below) / max(self.total, 1)

    def bars(self, max_bars: int = 40) -> list[Bar]:
        """The occupied range as at most `max_bars` bars of equally many bins.

        >>> histogram = Histogram(np.arange(5.0))
        >>> histogram.add(np.array([1.5, 2.5, 2.5, np.nan]))
        >>> [(bar.start, bar.end, bar.count) for bar in histogram.bars()]
        [(1.0, 2.0, 1), (2.0, 3.0, 2)]
        """
        occupied = np.flatnonzero(self.counts)
        if len(occupied) == 0:
            return []
        first, last = int(occupied[0]), int(occupied[-1])
        width = -(-(last - first + 1) // max_bars)
        starts = range(first, last + 1, width)
        return [
            Bar(
                start=float(self.edges[start]),
                end=float(self.edges[min(start + width, len(self.counts))]),
                count=int(self.counts[start : start + width].sum()),
            )
            for start in starts
        ]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """The number of values from `start` to below `end`."""

    start: float
    end: float
    count: int


def score_edges() -> NDArray[np.floating]:
    """Edges for scores, in steps of 0.01 from -2 to 2, the range of R(M), a difference of two cosines."""
    return np.arange(-200, 201) / 100


def stability_edges() -> NDArray[np.floating]:
    """Edges for stabilities, sums of IoUs with up to 20 checkpoints, in steps of 0.02."""
    return np.arange(1001) / 50


def share_edges() -> NDArray[np.floating]:
    """Edges for areas as shares of the image: 10 per decade, from 1/100,000 to 1."""
    return np.power(10.0, np.arange(-50, 1) / 10)


def count_edges() -> NDArray[np.floating]:
    """Edges for numbers of masks, one bin each up to 200."""
    return np.arange(202) - 0.5
