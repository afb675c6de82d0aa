"""Statistics of a version, counted in one pass over the columns of its shards; no mask is decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.report.histogram import Histogram, count_edges, score_edges, share_edges, stability_edges
from engine.store.columns import ShardColumns
from engine.store.pseudo_labels import Version
from engine.types import Reason, Status

_MAX_EXAMPLES = 4
_NUM_SIDES = 3
# A mask that touches three sides of the image and covers a quarter of it has spread beyond its object; one
# that touches three sides or covers half is more often background than an object (1 % of COCO's objects).
_OVERFLOWING_SHARE = 0.25
_BACKGROUND_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image without labels; `detail` explains its reason."""

    image_id: str
    path: str
    coco_id: int | None
    detail: str


@dataclass(kw_only=True)
class VersionStatistics:
    """Counts and histograms of images and masks, and the first images of each reason.

    `configuration` and `evaluations` (by digest) are the version's. `overflowing_masks` cover a quarter of
    their image and touch three of its sides; `background_masks` cover half of it or touch three of its sides.
    """

    configuration: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    images: int = 0
    masks: int = 0
    single_mask_images: int = 0
    overflowing_masks: int = 0
    background_masks: int = 0
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
        shares, sides = area_shares(columns), _touched_sides(columns)
        self.images += columns.num_images
        self.masks += len(columns.areas)
        self.single_mask_images += int((columns.counts == 1).sum())
        self.overflowing_masks += int(((sides >= _NUM_SIDES) & (shares >= _OVERFLOWING_SHARE)).sum())
        self.background_masks += int(((sides >= _NUM_SIDES) | (shares >= _BACKGROUND_SHARE)).sum())
        self.statuses.update(statuses.tolist())
        self.masks_per_image.add(columns.counts[statuses != Status.REJECTED.value])
        self.area_shares.add(shares)
        self.scores.add(columns.scores)
        self.stabilities.add(columns.stabilities)
        self._add_reasons(columns)

    def _add_reasons(self, columns: ShardColumns) -> None:
        reasons = columns.images["reason"].drop_null().to_pylist()
        self.reasons.update(reasons)
        incomplete = {reason for reason in reasons if len(self.examples.get(reason, ())) < _MAX_EXAMPLES}
        for row in _rows_with(columns, incomplete):
            examples = self.examples.setdefault(row.pop("reason"), [])
            if len(examples) < _MAX_EXAMPLES:
                examples.append(Example(**row))

    def is_rejection(self, reason: str) -> bool:
        """Whether images with this reason were rejected, rather than found to have no object."""
        return list(Reason).index(Reason(reason)) >= list(Reason).index(Reason.MISSING)

    @property
    def labelled_images(self) -> int:
        return self.statuses[Status.LABELLED.value]

    @property
    def processed_images(self) -> int:
        """Images that were not rejected."""
        return self.images - self.statuses[Status.REJECTED.value]

    @property
    def labelled_share(self) -> float:
        return self.labelled_images / max(self.images, 1)

    @property
    def mean_masks(self) -> float:
        """Masks per image that was not rejected."""
        return self.masks / max(self.processed_images, 1)


def begin_statistics(version: Version) -> VersionStatistics:
    """Statistics of a version before any of its shards is added."""
    return VersionStatistics(configuration=version.info.configuration, evaluations=version.evaluations())


def read_statistics(version: Version) -> VersionStatistics:
    """Statistics of all shards of a version; one shard is in memory at a time."""
    statistics = begin_statistics(version)
    for columns in version.columns():
        statistics.add(columns)
    return statistics


def area_shares(columns: ShardColumns) -> NDArray[np.float64]:
    """Each mask's area as a share of its image's, float64 (M,)."""
    image_areas = columns.heights.astype(np.int64) * columns.widths
    shares: NDArray[np.float64] = columns.areas / np.maximum(image_areas[columns.image_of_instance], 1)
    return shares


def _touched_sides(columns: ShardColumns) -> NDArray[np.int64]:
    """The number of image sides that each mask touches, (M,)."""
    left, top, right, bottom = columns.boxes_xyxy.T
    image_of_instance = columns.image_of_instance
    is_touching = [
        left == 0,
        top == 0,
        right == columns.widths[image_of_instance],
        bottom == columns.heights[image_of_instance],
    ]
    sides: NDArray[np.int64] = np.sum(is_touching, axis=0)
    return sides


def _rows_with(columns: ShardColumns, reasons: set[str]) -> Iterator[dict[str, Any]]:
    if reasons:
        table = columns.images.select(["image_id", "path", "coco_id", "detail", "reason"])
        yield from (row for row in table.to_pylist() if row["reason"] in reasons)
