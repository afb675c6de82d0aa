"""How fast labels were made: the only thing in a store that holds a time, and no part of any promise of
equal bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run that came to its end: the images it labelled itself, in how many seconds from its first task to
    its last shard, on which device, with how many workers in each stage."""

    images: int
    seconds: float
    device: str
    workers: Mapping[str, int]

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds if self.seconds > 0 else 0.0
