"""Records of finished runs: the only files of a store that hold a time and are not reproducible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A finished run: the number of images that it labelled itself, the seconds from its first task to its
    last shard, the device, and the number of workers by stage."""

    images: int
    seconds: float
    device: str
    workers: Mapping[str, int]

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds if self.seconds > 0 else 0.0
