"""An image of a corpus, read and brought to the size that an encoder takes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.corpora import Corpus
from engine.decoding import DecodingConfig, decode_image, resize_image
from engine.stopwatch import stage
from engine.types import ImageRecord


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedImage:
    """An image as the encoder takes it: `resized_hwc` is uint8 RGB at the encoder's size; `size` is the
    upright original's (height, width) and `sha256` the hex digest of its file."""

    resized_hwc: NDArray[np.uint8]
    size: tuple[int, int]
    sha256: str


def prepare_image(
    corpus: Corpus, record: ImageRecord, image_size: tuple[int, int], config: DecodingConfig
) -> PreparedImage:
    """Read, decode and resize one image of a corpus. Raises ImageError, or TransientError while reading."""
    with stage("read"):
        data = corpus.read(record)
    with stage("decode, resize"):
        image = decode_image(data, config)
        resized = resize_image(image, image_size)
    return PreparedImage(
        resized_hwc=resized,
        size=(image.shape[0], image.shape[1]),
        sha256=hashlib.sha256(data).hexdigest(),
    )
