"""Any folder of images, local or on S3, and the photographs that scikit-image carries."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from engine.decoding import IMAGE_SUFFIXES
from engine.errors import CorpusError, ImageError, ObjectMissing, StoreError
from engine.store.local import LocalObjects
from engine.store.objects import ObjectStore, open_objects
from engine.types import ImageRecord, Reason

SKIMAGE_URI = "skimage:"
# The colour and grey photographs of ordinary things among scikit-image's packaged data.
_SKIMAGE_PHOTOGRAPHS = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png",
                        "motorcycle_left.png", "rocket.jpg")  # fmt: skip


class FolderCorpus:
    """All JPEG, PNG, WebP, TIFF and BMP files below a folder, in the order of their paths' bytes.

    Hidden files and folders (names that begin with a dot) are passed over. The image id is the path relative
    to the corpus root.
    """

    def __init__(self, objects: ObjectStore, names: tuple[str, ...] | None = None) -> None:
        """`names` limits the corpus to these files, in this order."""
        self._objects = objects
        self._names = names

    @classmethod
    def open(cls, uri: str) -> FolderCorpus:
        """The corpus at a path, `s3://bucket/prefix` or `skimage:`. Raises CorpusError for anything else."""
        if uri == SKIMAGE_URI:
            return cls(LocalObjects(_skimage_folder()), _SKIMAGE_PHOTOGRAPHS)
        try:
            objects = open_objects(uri)
        except StoreError as error:
            raise CorpusError(str(error)) from error
        if isinstance(objects, LocalObjects) and not os.path.isdir(objects.uri):
            raise CorpusError(f"no folder {uri!r}: --corpus takes a folder, s3://bucket/prefix or skimage:")
        return cls(objects)

    @property
    def uri(self) -> str:
        return SKIMAGE_URI if self._names is not None else self._objects.uri

    def records(self, after: ImageRecord | None = None) -> Iterator[ImageRecord]:
        try:
            for key in self._keys(_as_key(after.path) if after is not None else ""):
                if _is_image(key):
                    yield ImageRecord(image_id=_as_text(key), path=_as_text(key))
        except StoreError as error:
            raise CorpusError(str(error)) from error

    def _keys(self, start_after: str) -> Iterator[str]:
        if self._names is None:
            return self._objects.keys(start_after=start_after)
        return (name for name in self._names if name > start_after)

    def read(self, record: ImageRecord) -> bytes:
        try:
            return self._objects.read(_as_key(record.path))
        except ObjectMissing as error:
            raise ImageError(Reason.MISSING, "the file is not there") from error
        except StoreError as error:
            # Rows speak of the corpus without saying where it lies.
            raise ImageError(Reason.UNREADABLE, str(error).replace(f"{self._objects.uri}/", "")) from error


def _is_image(key: str) -> bool:
    return key.lower().endswith(IMAGE_SUFFIXES) and not any(part.startswith(".") for part in key.split("/"))


def _as_text(key: str) -> str:
    """The key as text that any file can hold: bytes that are no UTF-8 become \\xNN."""
    return os.fsencode(key).decode("utf-8", "backslashreplace")


def _as_key(text: str) -> str:
    """The key that `_as_text` was given."""
    data = re.sub(rb"\\x([89a-f][0-9a-f])", lambda match: bytes.fromhex(match[1].decode()), text.encode())
    return os.fsdecode(data)


def _skimage_folder() -> Path:
    import skimage.data

    return Path(skimage.data.__file__).parent
