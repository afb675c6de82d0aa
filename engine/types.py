"""What travels between the parts: image records, chunks of work, instances and outcomes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from engine.masks.instances import Instances

Precision = Literal["float32", "bfloat16", "float16"]
"""Autocast dtype of a network's forward pass."""


class Status(StrEnum):
    """What became of an image. Every image of a corpus ends as exactly one of these."""

    LABELLED = "labelled"
    NO_OBJECT = "no_object"
    REJECTED = "rejected"


class Reason(StrEnum):
    """Why an image has no instances: a closed list, stored as the code itself.

    The first group goes with `Status.NO_OBJECT` (the image was looked at, the method found nothing),
    the second with `Status.REJECTED` (the image could not be looked at).
    """

    NO_BACKGROUND = "no_background"
    SMALL_BACKGROUND = "small_background"
    NO_FOREGROUND = "no_foreground"
    REFINED_AWAY = "refined_away"

    MISSING = "missing"
    UNREADABLE = "unreadable"
    UNREACHABLE = "unreachable"
    EMPTY_FILE = "empty_file"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_LARGE = "too_large"
    TOO_SMALL = "too_small"
    NON_FINITE = "non_finite"
    TIMED_OUT = "timed_out"
    DUPLICATE = "duplicate"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """One image of a corpus, by name.

    `image_id` is unique in its corpus and stable when the corpus moves; `path` is relative to the corpus
    root; `coco_id` is the number that COCO-like corpora give the image.
    """

    image_id: str
    path: str
    coco_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A few images of a shard that are computed together."""

    shard: int
    records: tuple[ImageRecord, ...]


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """The images of one shard, in order. `is_last` marks the end of the corpus as it was listed."""

    index: int
    records: tuple[ImageRecord, ...]
    is_last: bool

    def chunks(self, chunk_size: int) -> Iterator[Chunk]:
        """Cut the shard into chunks of `chunk_size` images at fixed positions; the last may be shorter."""
        for start in range(0, len(self.records), chunk_size):
            yield Chunk(shard=self.index, records=self.records[start : start + chunk_size])


@dataclass(frozen=True, kw_only=True)
class Optimality:
    """How good a partition of an image is by its own measure: the objective, lower is better, and the gap, by
    how much a better one could be below it at most, relative to the bound: 0 is optimal, 1 says nothing."""

    objective: float
    gap: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What became of one image; exactly one row of the store.

    `height`, `width` are the upright image's pixels and `sha256` the hex digest of the file's bytes; each is
    None where the image was rejected before it was known. `reason` is None when `status` is LABELLED.
    `detail` is a sentence for people and never affects anything. `optimality` is None where no partition of
    the image was looked for.
    """

    record: ImageRecord
    status: Status
    height: int | None = None
    width: int | None = None
    sha256: str | None = None
    reason: Reason | None = None
    detail: str = ""
    instances: Instances | None = None
    optimality: Optimality | None = None
