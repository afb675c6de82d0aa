"""The images that go into an export, as most readers will see them."""

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
# What a file is called by whose own name does not tell what it is.
_SUFFIXES = {
    "JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """An image's file, and the suffix of its name: lower case, with the dot."""

    data: bytes
    suffix: str


def read_image_files(
    corpus: Corpus, images: Sequence[tuple[ImageRecord, str | None]], executor: Executor
) -> list[ImageFile | ImageError]:
    """The files of images, each given with the sha256 that it had, or why one cannot be had, in this order.

    Raises TransientError where the corpus does not answer: a training set does without no image only because
    a server was away.
    """

    def read(image: tuple[ImageRecord, str | None]) -> ImageFile | ImageError:
        try:
            return _read(corpus, *image)
        except ImageError as error:
            return error

    return list(executor.map(read, images))


def safe_name(image_id: str) -> str:
    """A file name without suffix for an image, whatever its id: letters, digits, - and _, unique, not long.

    >>> safe_name("../cats/a cat.jpg")
    'cats_a_cat-51f02dead533'
    """
    stem = str(PurePosixPath(image_id).with_suffix("")) if PurePosixPath(image_id).name else image_id
    readable = re.sub(r"[^A-Za-z0-9-]+", "_", stem).strip("_")[-60:]
    return f"{readable}-{hashlib.sha256(image_id.encode()).hexdigest()[:12]}"


def _read(corpus: Corpus, record: ImageRecord, sha256: str | None) -> ImageFile:
    data = corpus.read(record)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ImageError(Reason.CORRUPT, "the file is not the one that was labelled")
    with Image.open(io.BytesIO(data)) as image:
        return ImageFile(data=_upright(image, data), suffix=_suffix(record.path, image))


def _suffix(path: str, image: Image.Image) -> str:
    """That of the path; where it is no image's, as in lists that name files without one, the format's."""
    own = PurePosixPath(path).suffix.lower()
    return own if own in IMAGE_SUFFIXES else _SUFFIXES.get(image.format or "", own)


def _upright(image: Image.Image, data: bytes) -> bytes:
    """The file itself, or one with turned pixels where EXIF turns it: masks are those of the upright image,
    and most readers of training sets do not look at EXIF."""
    try:
        if image.getexif().get(_ORIENTATION_TAG, 1) in (0, 1):
            return data
        turned = ImageOps.exif_transpose(image)
    except Exception:  # PIL's EXIF reader raises nearly anything on damaged tags; labelling ignored them
        return data
    return _encode(turned, image)


def _encode(turned: Image.Image, image: Image.Image) -> bytes:
    """The turned pixels in the format of the image that they come from. Raises ImageError."""
    # A TIFF takes a quality where its compression is JPEG's, and refuses it elsewhere.
    is_lossy = image.format in ("JPEG", "MPO", "WEBP") or image.info.get("compression") == "jpeg"
    sink = io.BytesIO()
    try:
        turned.save(sink, image.format, **({"quality": _QUALITY} if is_lossy else {}))
    except Exception as error:  # PIL's encoders raise nearly anything, also for what PIL has read
        detail = f"it cannot be stored upright: {type(error).__name__}: {error}"
        raise ImageError(Reason.FAILED, detail) from error
    return sink.getvalue()
