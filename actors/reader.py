"""Reads the images of a chunk, decodes them and cuts them into crops.

What goes wrong with an image is caught here and becomes its row; Ray sees only errors that are not about an
image: a corpus that is gone, refuses access or no longer answers. This module does not import torch, which
takes seconds.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from engine.corpora import Corpus
from engine.errors import ImageError, PlaceError, TransientError
from engine.images.crops import Crop, PreparationConfig
from engine.images.decoding_process import DecodingProcess
from engine.labelling.outcomes import rejected_outcome
from engine.stopwatch import stage
from engine.types import Chunk, ImageRecord, Outcome, Reason

# Waits between attempts to read an image from a server that does not answer; botocore has retried by then.
_RETRY_WAITS_S = (1.0, 5.0, 15.0)
# A corpus that has answered nothing for this long, for two images or more, is out of reach.
_PATIENCE_S = 120.0


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadCrop:
    """A crop of the image `record`, whose file has the digest `sha256`."""

    record: ImageRecord
    sha256: str
    crop: Crop


class Reader:
    """Reads and decodes the images of a chunk."""

    def __init__(
        self,
        corpus: Corpus,
        config: PreparationConfig,
        retry_waits_s: Sequence[float] = _RETRY_WAITS_S,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        """`retry_waits_s` are the waits between attempts to read an image; a corpus that has not answered for
        `patience_s` is out of reach."""
        self._corpus = corpus
        self._decoder = DecodingProcess(config)
        self._retry_waits_s = retry_waits_s
        self._silence = _Silence(patience_s)

    def crops(self, chunk: Chunk) -> Generator[ReadCrop | Outcome]:
        """Every crop of every image, its whole first; an image that fails ends with its row.

        Raises PlaceError if the corpus as a whole is out of reach.
        """
        for record in chunk.records:
            try:
                with stage("read"):
                    data = self._read(record)
                sha256 = hashlib.sha256(data).hexdigest()
                for crop in self._decoder.crops(data):
                    yield ReadCrop(record=record, sha256=sha256, crop=crop)
            except PlaceError:
                raise
            except ImageError as error:
                rejected = rejected_outcome(record, error.reason, error.detail)
            except TransientError as error:
                rejected = rejected_outcome(record, Reason.UNREACHABLE, str(error))
            except Exception as error:  # whatever it is, it is about this image and must not stop the others
                detail = f"while reading: {type(error).__name__}: {error}"
                rejected = rejected_outcome(record, Reason.FAILED, detail)
            else:
                continue
            yield rejected

    def _read(self, record: ImageRecord) -> bytes:
        """Read an image's file. Raises ImageError, TransientError after all attempts, or PlaceError."""
        for wait_s in (*self._retry_waits_s, None):
            try:
                data = self._corpus.read(record)
            except TransientError as error:
                self._silence.note(record, error)
                if wait_s is None or self._silence.is_long():
                    raise
                time.sleep(wait_s)
            except ImageError:
                self._silence.end()
                raise
            else:
                self._silence.end()
                return data
        raise AssertionError("the last attempt returns or raises")


class _Silence:
    """The time since a corpus answered last, while it does not answer."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._start = 0.0
        self._images: set[ImageRecord] = set()

    def note(self, record: ImageRecord, error: TransientError) -> None:
        """Note that a request for an image failed.

        Raises PlaceError if it is too long since the last answer and another image failed, too.
        """
        if not self._images:
            self._start = time.monotonic()
        self._images.add(record)
        if self.is_long() and len(self._images) > 1:
            seconds = time.monotonic() - self._start
            raise PlaceError(f"the corpus has answered nothing for {seconds:.0f} s: {error}") from error

    def is_long(self) -> bool:
        return bool(self._images) and time.monotonic() - self._start >= self._patience_s

    def end(self) -> None:
        """Note an answer."""
        self._images.clear()
