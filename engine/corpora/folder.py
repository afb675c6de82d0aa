"""Folders of images, local or on S3, and the photographs in scikit-image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from engine.corpora.files import (
    is_image,
    key_to_text,
    list_keys,
    open_corpus_objects,
    read_file,
    text_to_key,
)
from engine.errors import CorpusError, PlaceError, StoreError
from engine.objects.local import LocalObjects
from engine.objects.object_store import ObjectStore
from engine.types import ImageRecord

SKIMAGE_URI = "skimage:"
# The photographs of everyday scenes in scikit-image's packaged data.
_SKIMAGE_PHOTOGRAPHS = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png",
                        "motorcycle_left.png", "rocket.jpg")  # fmt: skip


class FolderCorpus:
    """All JPEG, PNG, WebP, TIFF and BMP files below a folder, in the order of their paths' bytes.

    Hidden files and folders (names that begin with a dot) are skipped. The image id is the path relative to
    the corpus root.
    """

    kind: Literal["folder"] = "folder"

    def __init__(self, objects: ObjectStore, names: tuple[str, ...] | None = None) -> None:
        """If given, `names` are the corpus's only files, in ascending order."""
        self._objects = objects
        self._names = names

    @classmethod
    def open(cls, uri: str) -> FolderCorpus:
        """Open a path, `s3://bucket/prefix` or `skimage:`. Raises CorpusError for anything else."""
        if uri == SKIMAGE_URI:
            return cls(LocalObjects(_skimage_folder()), _SKIMAGE_PHOTOGRAPHS)
        return cls(open_corpus_objects(uri, "a folder, s3://bucket/prefix or skimage:"))

    @property
    def uri(self) -> str:
        return SKIMAGE_URI if self._names is not None else self._objects.uri

    def records(self, after: ImageRecord | None = None) -> Iterator[ImageRecord]:
        try:
            for key in self._keys(text_to_key(after.path) if after is not None else ""):
                if is_image(key):
                    yield ImageRecord(image_id=key_to_text(key), path=key_to_text(key))
        except PlaceError:
            raise
        except StoreError as error:
            raise CorpusError(str(error)) from error

    def _keys(self, start_after: str) -> Iterator[str]:
        if self._names is None:
            return list_keys(self._objects, start_after)
        return (name for name in self._names if name > start_after)

    def read(self, record: ImageRecord) -> bytes:
        return read_file(self._objects, text_to_key(record.path))


def _skimage_folder() -> Path:
    import skimage.data

    return Path(skimage.data.__file__).parent
