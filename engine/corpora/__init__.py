"""Where images come from. A corpus names its images in a fixed order and hands out their bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol, get_args

from engine.corpora.folder import FolderCorpus
from engine.errors import CorpusError
from engine.types import ImageRecord, ShardPlan

__all__ = ["Corpus", "CorpusKind", "FolderCorpus", "open_corpus", "plan_shards"]

CorpusKind = Literal["folder"]
"""How a corpus is laid out; a version of labels records it, so that its images can be found again."""


class Corpus(Protocol):
    """What the pipeline asks of every corpus. Implementations pickle small: they hold names, not images."""

    @property
    def uri(self) -> str:
        """The corpus as the user named it."""

    def records(self, after: ImageRecord | None = None) -> Iterator[ImageRecord]:
        """The images in the corpus's order, as they are listed; from the one behind `after` on.

        The order is a pure function of the corpus's content. Raises CorpusError where it cannot be listed.
        """

    def read(self, record: ImageRecord) -> bytes:
        """The image's file. Raises ImageError, or TransientError where another try may help."""


def open_corpus(uri: str, kind: str) -> Corpus:
    """The corpus of this kind at `uri`. Raises CorpusError where there is none, or no such kind."""
    if kind == "folder":
        return FolderCorpus.open(uri)
    raise CorpusError(f"no corpus of kind {kind!r}: there are {', '.join(get_args(CorpusKind))}")


def plan_shards(records: Iterator[ImageRecord], shard_size: int, first: int = 0) -> Iterator[ShardPlan]:
    """Cut a stream of records into shards of `shard_size`, numbered from `first`; the last may be shorter.

    >>> stream = (ImageRecord(image_id=name, path=name) for name in "abc")
    >>> [(plan.index, len(plan.records), plan.is_last) for plan in plan_shards(stream, 2)]
    [(0, 2, False), (1, 1, True)]
    """
    held: list[ImageRecord] = []
    for record in records:
        # A full shard waits for one more record, which tells whether it is the last.
        if len(held) == shard_size:
            yield ShardPlan(index=first, records=tuple(held), is_last=False)
            held, first = [], first + 1
        held.append(record)
    if held:
        yield ShardPlan(index=first, records=tuple(held), is_last=True)
