"""Value types shared by all rooms: image records, chunks of work and outcomes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from engine.masks.instances import Instances

Precision = Literal["float32", "bfloat16", "float16"]
"""Autocast dtype of a network's forward pass."""


class Status(StrEnum):
    """The result of labelling an image; every image of a corpus gets exactly one."""

    LABELLED = "labelled"
    NO_OBJECT = "no_object"
    REJECTED = "rejected"


class Reason(StrEnum):
    """Why an image has no instances: a closed list, stored as the code itself.

    The first group goes with `Status.NO_OBJECT` (the image was labelled, and nothing was found), the second
    with `Status.REJECTED` (the image could not be labelled).
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


# Reasons that go with `Status.REJECTED`.
REJECTION_REASONS = tuple(Reason)[tuple(Reason).index(Reason.MISSING) :]
# Reasons that an outage can cause: such an image is read again before its row is stored.
DOUBTFUL_REASONS = frozenset(
    {
        Reason.MISSING,
        Reason.UNREADABLE,
        Reason.UNREACHABLE,
        Reason.EMPTY_FILE,
        Reason.NOT_AN_IMAGE,
        Reason.TRUNCATED,
        Reason.CORRUPT,
    }
)


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """The name of an image in a corpus.

    `image_id` is unique in the corpus and does not change when the corpus moves; `path` is relative to the
    root of the corpus; `coco_id` is the number that COCO-like corpora give the image.
    """

    image_id: str
    path: str
    coco_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A few images of a shard that are labelled together."""

    shard: int
    records: tuple[ImageRecord, ...]


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """The images of one shard, in order. `is_last` marks the end of the corpus at the time it was listed."""

    index: int
    records: tuple[ImageRecord, ...]
    is_last: bool

    def chunks(self, chunk_size: int) -> Iterator[Chunk]:
        """Split the shard into chunks of `chunk_size` images at fixed positions; the last may be shorter."""
        for start in range(0, len(self.records), chunk_size):
            yield Chunk(shard=self.index, records=self.records[start : start + chunk_size])


@dataclass(frozen=True, kw_only=True)
class Optimality:
    """Quality of a partition: its objective (lower is better) and the gap to a lower bound.

    The gap is relative to the bound: no partition is better by more than this share of it. 0 is optimal.
    """

    objective: float
    gap: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """The result for one image: exactly one row of the store.

    `height`, `width` are those of the upright image in pixels, `sha256` is the file's in hex; each is None if
    the image was rejected before it was known. `reason` is None if `status` is LABELLED. `detail` is a
    sentence for people and has no effect. `optimality` is None if the method makes no partition.
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
