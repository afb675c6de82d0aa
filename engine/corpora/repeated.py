"""A small corpus repeated many times, for benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from typing import TYPE_CHECKING

from engine.types import ImageRecord

if TYPE_CHECKING:
    from engine.corpora import Corpus, CorpusKind


class RepeatedCorpus:
    """The images of another corpus, repeated until there are `num_images`.

    Image ids begin with the number of the repetition, which makes them unique; paths are unchanged.
    """

    def __init__(self, corpus: Corpus, num_images: int) -> None:
        self._corpus = corpus
        self._num_images = num_images

    @property
    def kind(self) -> CorpusKind:
        return self._corpus.kind

    @property
    def uri(self) -> str:
        return self._corpus.uri

    def records(self, after: ImageRecord | None = None) -> Iterator[ImageRecord]:
        records = islice(self._repeated(), self._num_images)
        if after is not None:
            for record in records:
                if record == after:
                    break
        return records

    def read(self, record: ImageRecord) -> bytes:
        return self._corpus.read(record)

    def _repeated(self) -> Iterator[ImageRecord]:
        for repetition in count():
            is_empty = True
            for record in self._corpus.records():
                is_empty = False
                yield replace(record, image_id=f"{repetition}/{record.image_id}")
            if is_empty:
                return
