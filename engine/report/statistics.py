"""What a version holds, counted in one pass over its shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.report.histogram import Histogram, count_edges, score_edges, share_edges, stability_edges
from engine.store.columns import ShardColumns
from engine.types import Reason, Status

_EXAMPLES = 4
# A mask that covers this share of its image and touches this many of its sides has run out of its object.
_LARGE_SHARE = 0.25
_SPILLED_SIDES = 3


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image without labels, and what is known of why."""

    image_id: str
    path: str
    coco_id: int | None
    detail: str


@dataclass(kw_only=True)
class Statistics:
    """Counts, histograms over images and masks, and for each reason its first images."""

    images: int = 0
    masks: int = 0
    spilled_masks: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    masks_per_image: Histogram = field(default_factory=lambda: Histogram(count_edges()))
    area_shares: Histogram = field(default_factory=lambda: Histogram(share_edges()))
    scores: Histogram = field(default_factory=lambda: Histogram(score_edges()))
    stabilities: Histogram = field(default_factory=lambda: Histogram(stability_edges()))

    def add(self, columns: ShardColumns) -> None:
        """Count a shard."""
        statuses = np.asarray(columns.images["status"].to_numpy(), object)
        looked_at = statuses != Status.REJECTED.value
        self.images += columns.num_images
        self.masks += len(columns.areas)
        self.spilled_masks += int(_has_spilled(columns).sum())
        self.statuses.update(statuses.tolist())
        self.masks_per_image.add(columns.counts[looked_at])
        self.area_shares.add(area_shares(columns))
        self.scores.add(columns.scores)
        self.stabilities.add(columns.stabilities)
        self._add_reasons(columns)

    def _add_reasons(self, columns: ShardColumns) -> None:
        reasons = columns.images["reason"].drop_null().to_pylist()
        self.reasons.update(reasons)
        short = {reason for reason in reasons if len(self.examples.get(reason, ())) < _EXAMPLES}
        for row in _rows_with(columns, short):
            examples = self.examples.setdefault(row.pop("reason"), [])
            if len(examples) < _EXAMPLES:
                examples.append(Example(**row))

    def is_rejection(self, reason: str) -> bool:
        """Whether images with this reason could not be looked at at all."""
        return list(Reason).index(Reason(reason)) >= list(Reason).index(Reason.MISSING)

    @property
    def labelled_share(self) -> float:
        return self.statuses[Status.LABELLED.value] / max(self.images, 1)

    @property
    def mean_masks(self) -> float:
        """Masks per image that was looked at."""
        return self.masks / max(self.images - self.statuses[Status.REJECTED.value], 1)


def area_shares(columns: ShardColumns) -> NDArray[np.float64]:
    """Each mask's area as a share of its image's, float64 (M,)."""
    image_areas = columns.heights.astype(np.int64) * columns.widths
    shares: NDArray[np.float64] = columns.areas / np.maximum(image_areas[columns.image_of_instance], 1)
    return shares


def _has_spilled(columns: ShardColumns) -> NDArray[np.bool_]:
    left, top, right, bottom = columns.boxes_xyxy.T
    owners = columns.image_of_instance
    sides = (
        (left == 0).astype(int)
        + (top == 0)
        + (right == columns.widths[owners])
        + (bottom == columns.heights[owners])
    )
    has_spilled: NDArray[np.bool_] = (sides >= _SPILLED_SIDES) & (area_shares(columns) >= _LARGE_SHARE)
    return has_spilled


def _rows_with(columns: ShardColumns, reasons: set[str]) -> Iterator[dict[str, Any]]:
    if reasons:
        table = columns.images.select(["image_id", "path", "coco_id", "detail", "reason"])
        yield from (row for row in table.to_pylist() if row["reason"] in reasons)
