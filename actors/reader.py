"""What a worker begins with: the images of a chunk, read, decoded and brought to its network's size.

What goes wrong with an image is caught here and becomes its row; Ray sees only what is wrong with us.
This module does without torch, which takes seconds to import.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial

from engine.corpora import Corpus
from engine.errors import ImageError, TransientError
from engine.images.crops import Crop, PreparationConfig
from engine.images.decoding_process import DecodingProcess
from engine.stopwatch import stage
from engine.types import Chunk, ImageRecord, Outcome, Reason, Status

# Waits between tries of an image that a server did not hand out, in seconds; botocore has tried by then too.
_RETRY_WAITS_S = (1.0, 5.0, 15.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadCrop:
    """A crop of an image whose file has the digest `sha256`."""

    record: ImageRecord
    sha256: str
    crop: Crop


class Reader:
    """Reads and decodes the images of a chunk."""

    def __init__(self, corpus: Corpus, config: PreparationConfig) -> None:
        self._corpus = corpus
        self._decoder = DecodingProcess(config)

    def crops(self, chunk: Chunk) -> Generator[ReadCrop | Outcome]:
        """Every crop of every image, the whole of each first; at an image's failure, its row ends it."""
        for record in chunk.records:
            try:
                with stage("read"):
                    data = with_retries(partial(self._corpus.read, record))
                sha256 = hashlib.sha256(data).hexdigest()
                for crop in self._decoder.crops(data):
                    yield ReadCrop(record=record, sha256=sha256, crop=crop)
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
