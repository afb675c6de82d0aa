"""Reads the images of a chunk, decodes them and cuts them into crops.

What goes wrong with an image is caught here and becomes its row; Ray sees only errors that are not about an
image. This module does not import torch, which takes seconds.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial

from engine.corpora import Corpus
from engine.errors import ImageError, TransientError
from engine.images.crops import Crop, PreparationConfig
from engine.images.decoding_process import DecodingProcess
from engine.labelling.outcomes import rejected_outcome
from engine.stopwatch import stage
from engine.types import Chunk, ImageRecord, Outcome, Reason

# Waits between attempts to read an image from a server that does not answer; botocore has retried by then.
_RETRY_WAITS_S = (1.0, 5.0, 15.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadCrop:
    """A crop of the image `record`, whose file has the digest `sha256`."""

    record: ImageRecord
    sha256: str
    crop: Crop


class Reader:
    """Reads and decodes the images of a chunk; `retry_waits_s` are the waits between attempts to read one."""

    def __init__(
        self, corpus: Corpus, config: PreparationConfig, retry_waits_s: Sequence[float] = _RETRY_WAITS_S
    ) -> None:
        self._corpus = corpus
        self._decoder = DecodingProcess(config)
        self._retry_waits_s = retry_waits_s

    def crops(self, chunk: Chunk) -> Generator[ReadCrop | Outcome]:
        """Every crop of every image, its whole first; an image that fails ends with its row."""
        for record in chunk.records:
            try:
                with stage("read"):
                    data = with_retries(partial(self._corpus.read, record), self._retry_waits_s)
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


def with_retries(call: Callable[[], bytes], waits_s: Sequence[float]) -> bytes:
    """`call()`, repeated after each wait while it raises TransientError; the last attempt may raise it."""
    for wait_s in waits_s:
        try:
            return call()
        except TransientError:
            time.sleep(wait_s)
    return call()
