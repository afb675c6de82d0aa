"""Which images are for training and which for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import ConfigurationError

TRAIN, VAL = "train", "val"


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """An image's id alone says where it goes, so a corpus that grows moves none."""

    val_fraction: float = 0.1
    """The share of images that are kept for validation; about so many, since each is drawn by itself."""
    seed: int = 0
    """Another seed is another draw."""

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise ConfigurationError(f"val_fraction is at least 0 and below 1, got {self.val_fraction}")


def is_validation(image_ids: Iterable[str], config: SplitConfig) -> NDArray[np.bool_]:
    """Which images are for validation, bool (N,): those whose sha256 of seed and id is small.

    >>> is_validation(["a.jpg", "b.jpg", "c.jpg"], SplitConfig(val_fraction=0.5)).tolist()
    [False, False, True]
    """
    limit = int(config.val_fraction * 2**64)
    prefix = hashlib.sha256(f"{config.seed}/".encode())

    def draw(image_id: str) -> int:
        digest = prefix.copy()
        digest.update(image_id.encode())
        return int.from_bytes(digest.digest()[:8])

    return np.array([draw(image_id) < limit for image_id in image_ids], bool)
