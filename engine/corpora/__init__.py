"""Corpora: named images in a fixed order, whose files can be read."""

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
"""Layout of a corpus; recorded in a version of labels, so that its images can be read again."""


class Corpus(Protocol):
    """Interface of all corpora. Pickles are small, since they hold names and no images."""

    @property
    def kind(self) -> CorpusKind:
        """The layout."""

    @property
    def uri(self) -> str:
        """The place as a path or URI."""

    def records(self, after: ImageRecord | None = None) -> Iterator[ImageRecord]:
        """List the images lazily in the corpus's order, starting behind `after`.

        The order depends on the corpus's content only. Raises CorpusError if the corpus cannot be listed.
        """

    def read(self, record: ImageRecord) -> bytes:
        """Read an image's file. Raises ImageError, or TransientError if a retry may succeed."""


def open_corpus(uri: str, kind: str, kept_indexes: ObjectStore | None = None) -> Corpus:
    """Open the corpus of this kind at `uri`, to read images by their records.

    `kept_indexes` is the label store of the records: its indexes of tars save walking the tars' headers.
    Raises CorpusError if there is no such folder or kind.
    """
    if kind == "folder":
        return FolderCorpus.open(uri)
    if kind == "sa1b":
        return Sa1bCorpus.open(uri, kept_indexes)
    if kind == "coco":
        return CocoCorpus(open_corpus_objects(uri), "coco")
    if kind == "hrsid":
        return CocoCorpus(open_corpus_objects(uri), "hrsid")
    raise CorpusError(f"no corpus of kind {kind!r}: choose one of {', '.join(get_args(CorpusKind))}")


def plan_shards(records: Iterator[ImageRecord], shard_size: int, first: int = 0) -> Iterator[ShardPlan]:
    """Cut a stream of records into shards of `shard_size`, numbered from `first`; the last may be smaller.

    >>> stream = (ImageRecord(image_id=name, path=name) for name in "abc")
    >>> [(plan.index, len(plan.records), plan.is_last) for plan in plan_shards(stream, 2)]
    [(0, 2, False), (1, 1, True)]
    """
    held: list[ImageRecord] = []
    for record in records:
        # A full shard is yielded when the next record shows that it is not the last.
        if len(held) == shard_size:
            yield ShardPlan(index=first, records=tuple(held), is_last=False)
            held, first = [], first + 1
        held.append(record)
    if held:
        yield ShardPlan(index=first, records=tuple(held), is_last=True)
