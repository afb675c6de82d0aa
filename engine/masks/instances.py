"""Instance masks of one image; imports numpy only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Instances:
    """N instance masks of one image, best first.

    `rles` are COCO's compressed run lengths (column-major, as pycocotools writes them) for masks of `size`
    (height, width); `boxes_xyxy` is int32 (N, 4), half-open; `areas` is int64 (N,) in pixels; `scores` is
    float32 (N,); `stabilities` is float32 (N,), NaN if no round has measured it.
    """

    size: tuple[int, int]
    method: str
    rles: tuple[bytes, ...] = ()
    boxes_xyxy: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 4), np.int32))
    areas: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    stabilities: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    def __post_init__(self) -> None:
        lengths = {
            len(self.rles),
            len(self.boxes_xyxy),
            len(self.areas),
            len(self.scores),
            len(self.stabilities),
        }
        if len(lengths) != 1:
            raise ValueError(f"instances of one image must have equal lengths, got {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.rles)

    def keep(self, is_kept: NDArray[np.bool_]) -> Instances:
        """The instances where `is_kept`, bool (N,), is true."""
        return replace(
            self,
            rles=tuple(rle for rle, kept in zip(self.rles, is_kept, strict=True) if kept),
            boxes_xyxy=self.boxes_xyxy[is_kept],
            areas=self.areas[is_kept],
            scores=self.scores[is_kept],
            stabilities=self.stabilities[is_kept],
        )
