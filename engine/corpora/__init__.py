"""Where images come from. A corpus names its images in a fixed order and hands out their bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol, get_args

from engine.corpora.coco import CocoCorpus, open_coco, open_hrsid
from engine.corpora.files import open_corpus_objects
from engine.corpora.folder import FolderCorpus
from engine.corpora.sa1b import Sa1bCorpus
from engine.errors import CorpusError
from engine.objects.object_store import ObjectStore
from engine.types import ImageRecord, ShardPlan

__all__ = [
    "CocoCorpus",
    "Corpus",
    "CorpusKind",
    "FolderCorpus",
    "Sa1bCorpus",
    "open_coco",
    "open_corpus",
    "open_hrsid",
    "plan_shards",
]

CorpusKind = Literal["folder", "coco", "sa1b", "hrsid"]
"""How a corpus is laid out; a version of labels records it, so that its images can be found again."""


class Corpus(Protocol):
    """What the pipeline asks of every corpus. Implementations pickle small: they hold names, not images."""

    @property
    def kind(self) -> CorpusKind:
        """How it is laid out."""

    @property
    def uri(self) -> str:
        """The corpus as the user named it."""

    def records(self, after: ImageRecord | None = None) -> Iterator[ImageRecord]:
        """The images in the corpus's order, as they are listed; from the one behind `after` on.

        The order is a pure function of the corpus's content. Raises CorpusError where it cannot be listed.
        """

    def read(self, record: ImageRecord) -> bytes:
        """The image's file. Raises ImageError, or TransientError where another try may help."""


def open_corpus(uri: str, kind: str, kept_indexes: ObjectStore | None = None) -> Corpus:
    """The corpus of this kind at `uri`, to read images of that records name.

    `kept_indexes` is the label store that the records come from: with it, images in tars are found at once,
    without it by walking the tar's headers. Raises CorpusError where there is no such folder or kind.
    """
    if kind == "folder":
        return FolderCorpus.open(uri)
    if kind == "sa1b":
        return Sa1bCorpus.open(uri, kept_indexes)
    if kind == "coco":
        return CocoCorpus(open_corpus_objects(uri), "coco")
    if kind == "hrsid":
        return CocoCorpus(open_corpus_objects(uri), "hrsid")
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
