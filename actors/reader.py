"""The first stage: images of a chunk, read and decoded; and what all stages hand to one another.

Between the stages travels one chunk as one row, whose columns are

    chunk      Chunk, from the source
    heads      Heads, one Head per image of the chunk, from the Reader on
    images     uint8 (chunk size, S, S, 3), zeros where an image failed or the chunk is short
    features   float16 (chunk size, h, w, C), from the EncoderWorker
    result     ChunkResult, from the Labeller

Every row has the full chunk size, so that an image's result does not depend on how long its chunk is.
What goes wrong with an image is caught in the stage and becomes its row; Ray sees only what is wrong with us.
This module does without torch, which takes seconds to import.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.corpora import Corpus
from engine.decoding import DecodingConfig
from engine.errors import ImageError, TransientError
from engine.preparation import PreparedImage, prepare_image
from engine.types import Chunk, ImageRecord, Outcome, Reason, Status

Batch = dict[str, NDArray[Any]]

# Waits between tries of an image that a server did not hand out, in seconds; botocore has tried by then too.
_RETRY_WAITS_S = (1.0, 5.0, 15.0)


@dataclass(frozen=True, kw_only=True)
class Head:
    """All of an image but its pixels: what preparing found, or the row it already is."""

    record: ImageRecord
    size: tuple[int, int] = (0, 0)
    sha256: str = ""
    rejected: Outcome | None = None


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The heads of a chunk, in its order."""

    heads: tuple[Head, ...]


@dataclass(frozen=True, kw_only=True)
class ChunkResult:
    """The chunk and its rows, in its order."""

    chunk: Chunk
    outcomes: tuple[Outcome, ...]


class Reader:
    """Reads and decodes the images of a chunk."""

    def __init__(
        self, corpus: Corpus, config: DecodingConfig, image_size: tuple[int, int], chunk_size: int
    ) -> None:
        self._corpus = corpus
        self._config = config
        self._image_size = image_size
        self._chunk_size = chunk_size

    def __call__(self, batch: Batch) -> Batch:
        chunk: Chunk = batch["chunk"][0]
        images = np.zeros((self._chunk_size, *self._image_size, 3), np.uint8)
        heads: list[Head] = []
        for i, record in enumerate(chunk.records):
            prepared = self._prepare(record)
            if isinstance(prepared, Outcome):
                heads.append(Head(record=record, rejected=prepared))
            else:
                images[i] = prepared.resized_hwc
                heads.append(Head(record=record, size=prepared.size, sha256=prepared.sha256))
        return {"chunk": batch["chunk"], "heads": cell(Heads(heads=tuple(heads))), "images": images[None]}

    def _prepare(self, record: ImageRecord) -> PreparedImage | Outcome:
        try:
            return with_retries(lambda: prepare_image(self._corpus, record, self._image_size, self._config))
        except ImageError as error:
            return rejected_outcome(record, error.reason, error.detail)
        except TransientError as error:
            return rejected_outcome(record, Reason.UNREACHABLE, str(error))
        except Exception as error:  # whatever it is, it is about this image and must not stop the others
            return rejected_outcome(record, Reason.FAILED, f"while reading: {type(error).__name__}: {error}")


def cell(value: object) -> NDArray[Any]:
    """One of our own objects as a column of one row."""
    column = np.empty(1, object)
    column[0] = value
    return column


def rejected_outcome(record: ImageRecord, reason: Reason, detail: str) -> Outcome:
    """The row of an image that could not be looked at."""
    return Outcome(record=record, status=Status.REJECTED, reason=reason, detail=detail)


def with_retries(call: Callable[[], PreparedImage]) -> PreparedImage:
    """`call()`, tried again after each wait while it raises TransientError; the last try may raise it."""
    for wait_s in _RETRY_WAITS_S:
        try:
            return call()
        except TransientError:
            time.sleep(wait_s)
    return call()
