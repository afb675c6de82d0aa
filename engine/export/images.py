"""Image files for an export: the original bytes, or upright pixels if EXIF rotates the image."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import PurePosixPath

from PIL import Image, ImageOps

from engine.corpora import Corpus
from engine.errors import ImageError
from engine.images.decoding import IMAGE_SUFFIXES
from engine.types import ImageRecord, Reason

_ORIENTATION_TAG = 0x0112
_QUALITY = 95
# By PIL's format, for files whose own name has no image suffix.
_SUFFIXES = {
    "JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """The bytes of an image file and its suffix, lower case with the dot."""

    data: bytes
    suffix: str


def read_image_files(
    corpus: Corpus, images: Sequence[tuple[ImageRecord, str | None]], executor: Executor
) -> list[ImageFile | ImageError]:
    """Read image files, given as records and the sha256 of the labelled file; errors take a file's place.

    Raises TransientError if the corpus does not answer: an outage must not remove images from a training set.
    """

    def read(image: tuple[ImageRecord, str | None]) -> ImageFile | ImageError:
        try:
            return _read(corpus, *image)
        except ImageError as error:
            return error

    return list(executor.map(read, images))


def safe_name(image_id: str) -> str:
    """A unique, short file name of letters, digits, - and _, without a suffix, for any image id.

    >>> safe_name("../cats/a cat.jpg")
    'cats_a_cat-51f02dead533'
    """
    stem = str(PurePosixPath(image_id).with_suffix("")) if PurePosixPath(image_id).name else image_id
    readable = re.sub(r"[^A-Za-z0-9-]+", "_", stem).strip("_")[-60:]
    return f"{readable}-{hashlib.sha256(image_id.encode()).hexdigest()[:12]}"


def _read(corpus: Corpus, record: ImageRecord, sha256: str | None) -> ImageFile:
    data = corpus.read(record)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ImageError(Reason.CORRUPT, "the file has changed since it was labelled")
    with Image.open(io.BytesIO(data)) as image:
        return ImageFile(data=_upright(image, data), suffix=_suffix(record.path, image))


def _suffix(path: str, image: Image.Image) -> str:
    """The path's suffix if it is an image suffix, otherwise the file format's."""
    own = PurePosixPath(path).suffix.lower()
    return own if own in IMAGE_SUFFIXES else _SUFFIXES.get(image.format or "", own)


def _upright(image: Image.Image, data: bytes) -> bytes:
    """The file itself, or a re-encoded upright one if EXIF rotates it.

    Masks belong to the upright image, and most training code ignores EXIF.
    """
    try:
        if image.getexif().get(_ORIENTATION_TAG, 1) in (0, 1):
            return data
        upright = ImageOps.exif_transpose(image)
    except Exception:  # PIL raises many types on damaged EXIF, which labelling ignored
        return data
    return _encode(upright, image)


def _encode(upright: Image.Image, image: Image.Image) -> bytes:
    """Encode the upright pixels in the format of the original image. Raises ImageError."""
    # TIFF accepts a quality with JPEG compression only.
    is_lossy = image.format in ("JPEG", "MPO", "WEBP") or image.info.get("compression") == "jpeg"
    sink = io.BytesIO()
    try:
        upright.save(sink, image.format, **({"quality": _QUALITY} if is_lossy else {}))
    except Exception as error:  # PIL's encoders raise many types, even for images that PIL has read
        detail = f"it cannot be stored upright: {type(error).__name__}: {error}"
        raise ImageError(Reason.FAILED, detail) from error
    return sink.getvalue()
