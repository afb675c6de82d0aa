"""Split images into training and validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from engine.bounds import Bounded, Bounds

TRAIN, VAL = "train", "val"


@dataclass(frozen=True, kw_only=True)
class SplitConfig(Bounded):
    """A random split by image id alone, so that a growing corpus moves no image to the other split."""

    val_fraction: Annotated[float, Bounds(0, 1, "a share", below=True)] = 0.1
    """Expected share of validation images; each image is drawn independently."""
    seed: int = 0
    """Seed of the draw."""


def is_validation(image_ids: Iterable[str], config: SplitConfig) -> NDArray[np.bool_]:
    """Validation images, bool (N,): those whose sha256 of seed and id is below `val_fraction` of its range.

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
