"""The first stage: images of a chunk, read and decoded; and what all stages hand to one another.

Between the stages travels one chunk as one row, or as several where its images have tiles. The columns are

    chunk      Chunk, from the source
    heads      Heads, one Head per crop in the row, from the Reader on
    images     uint8 (chunk size, S, S, 3), zeros where an image failed or the row is short
    result     ChunkResult, from a PatchWorker or a NetworkWorker

Every row has the full chunk size, so that an image's result does not depend on how long its chunk is. Tiles
need what the whole image shows: a row that begins among an image's tiles holds the whole image again.
What goes wrong with an image is caught in the stage and becomes its row; Ray sees only what is wrong with us.
This module does without torch, which takes seconds to import.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.corpora import Corpus
from engine.decoding_process import DecodingProcess
from engine.errors import ImageError, TransientError
from engine.preparation import PreparationConfig
from engine.stopwatch import stage
from engine.tiling import Box
from engine.types import Chunk, ImageRecord, Outcome, Reason, Status

Batch = dict[str, NDArray[Any]]
Pixels = NDArray[np.uint8]

# Waits between tries of an image that a server did not hand out, in seconds; botocore has tried by then too.
_RETRY_WAITS_S = (1.0, 5.0, 15.0)


@dataclass(frozen=True, kw_only=True)
class Head:
    """All of a crop but its pixels: what preparing found, or the row that its image already is.

    `box_xyxy` is the tile, None for the whole image; `is_repeated` a whole image that another row labels.
    """

    record: ImageRecord
    size: tuple[int, int] = (0, 0)
    sha256: str = ""
    box_xyxy: Box | None = None
    is_repeated: bool = False
    rejected: Outcome | None = None


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The heads of row number `part` of a chunk, in order."""

    heads: tuple[Head, ...]
    part: int
    is_last: bool


@dataclass(frozen=True, kw_only=True)
class ChunkResult:
    """Row number `part` of a chunk: the outcome of every crop in it, in order."""

    chunk: Chunk
    part: int
    is_last: bool
    outcomes: tuple[Outcome, ...]


class Reader:
    """Reads and decodes the images of a chunk."""

    def __init__(self, corpus: Corpus, config: PreparationConfig, chunk_size: int) -> None:
        self._corpus = corpus
        self._decoder = DecodingProcess(config)
        self._image_size = config.image_size
        self._chunk_size = chunk_size

    def __call__(self, batch: Batch) -> Iterator[Batch]:
        chunk: Chunk = batch["chunk"][0]
        images, heads, part = self._empty_images(), list[Head](), 0
        for head, pixels, whole in self._crops(chunk):
            if len(heads) == self._chunk_size:
                yield _row(batch, images, Heads(heads=tuple(heads), part=part, is_last=False))
                images, heads, part = self._empty_images(), [], part + 1
                if head.box_xyxy is not None and whole is not None:
                    images[0] = whole
                    heads.append(replace(head, box_xyxy=None, is_repeated=True))
            if pixels is not None:
                images[len(heads)] = pixels
            heads.append(head)
        yield _row(batch, images, Heads(heads=tuple(heads), part=part, is_last=True))

    def _crops(self, chunk: Chunk) -> Iterator[tuple[Head, Pixels | None, Pixels | None]]:
        """Every crop of every image: its head, its pixels, and those of the whole image."""
        for record in chunk.records:
            try:
                with stage("read"):
                    data = with_retries(partial(self._corpus.read, record))
                whole, sha256 = None, hashlib.sha256(data).hexdigest()
                for crop in self._decoder.crops(data):
                    whole = crop.resized_hwc if crop.is_whole else whole
                    box = None if crop.is_whole else crop.box_xyxy
                    yield (
                        Head(record=record, size=crop.size, sha256=sha256, box_xyxy=box),
                        crop.resized_hwc,
                        whole,
                    )
            except ImageError as error:
                rejected = rejected_outcome(record, error.reason, error.detail)
            except TransientError as error:
                rejected = rejected_outcome(record, Reason.UNREACHABLE, str(error))
            except Exception as error:  # whatever it is, it is about this image and must not stop the others
                detail = f"while reading: {type(error).__name__}: {error}"
                rejected = rejected_outcome(record, Reason.FAILED, detail)
            else:
                continue
            yield Head(record=record, rejected=rejected), None, None

    def _empty_images(self) -> Pixels:
        return np.zeros((self._chunk_size, *self._image_size, 3), np.uint8)


def _row(batch: Batch, images: Pixels, heads: Heads) -> Batch:
    return {"chunk": batch["chunk"], "heads": cell(heads), "images": images[None]}


def cell(value: object) -> NDArray[Any]:
    """One of our own objects as a column of one row."""
    column = np.empty(1, object)
    column[0] = value
    return column


def rejected_outcome(record: ImageRecord, reason: Reason, detail: str) -> Outcome:
    """The row of an image that could not be looked at."""
    return Outcome(record=record, status=Status.REJECTED, reason=reason, detail=detail)


def with_retries(call: Callable[[], bytes]) -> bytes:
    """`call()`, tried again after each wait while it raises TransientError; the last try may raise it."""
    for wait_s in _RETRY_WAITS_S:
        try:
            return call()
        except TransientError:
            time.sleep(wait_s)
    return call()
