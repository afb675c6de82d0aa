"""SA-1B as published: tars of sa_N.jpg and sa_N.json, read in place, or the same files unpacked."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from threading import Lock
from typing import Any, Literal

from engine.corpora.files import (
    check_reachable,
    is_hidden,
    is_image,
    key_to_text,
    list_keys,
    open_corpus_objects,
    read_file,
    text_to_key,
)
from engine.corpora.tar_index import TarIndex, TarIndexConfig
from engine.errors import CorpusError, ImageError, ObjectMissing, PlaceError, StoreError
from engine.objects.object_store import ObjectStore
from engine.types import ImageRecord, Reason

_TAR_SUFFIX = ".tar"
_COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_END_OF_TAR_NAME = re.compile(r"\.tar(?=/)", re.IGNORECASE)
_SA1B_NAME = re.compile(r"(?:^|/)sa_(\d{1,18})\.\w+$")
# Most indexes that a process holds, a megabyte or two each.
_MAX_INDEXES = 8


class Sa1bCorpus:
    """The images in all tars below a folder and its image files, in the order of keys and members.

    The image id is the path, which is TAR/MEMBER for an image in a tar; the COCO id is the N of sa_N.jpg.
    Tars that are compressed or cannot be opened, and damaged spots in tars, have rows of their own.
    """

    kind: Literal["sa1b"] = "sa1b"

    def __init__(
        self,
        objects: ObjectStore,
        kept_indexes: ObjectStore | None = None,
        index_config: TarIndexConfig | None = None,
    ) -> None:
        """`kept_indexes` is a label store, which the indexes of the tars are read from and written to."""
        self._objects = objects
        self._kept_indexes = kept_indexes
        self._index_config = index_config or TarIndexConfig()
        self._indexes: OrderedDict[str, TarIndex] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def open(cls, uri: str, kept_indexes: ObjectStore | None = None) -> Sa1bCorpus:
        """Open a path or `s3://bucket/prefix`. Raises CorpusError for anything else."""
        return cls(open_corpus_objects(uri), kept_indexes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_indexes": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=Lock())

    @property
    def uri(self) -> str:
        return self._objects.uri

    def records(self, after: ImageRecord | None = None) -> Iterator[ImageRecord]:
        tar, member = self._split(after.path) if after is not None else ("", None)
        try:
            if member is not None:
                yield from self._members(tar, member)
            for key in list_keys(self._objects, tar):
                if _is_tar(key):
                    yield from self._members(key, None)
                elif is_image(key) or _is_compressed_tar(key):
                    yield _record(key_to_text(key))
        except PlaceError:
            raise
        except StoreError as error:
            raise CorpusError(str(error)) from error

    def read(self, record: ImageRecord) -> bytes:
        key, name = self._split(record.path)
        if _is_compressed_tar(key):
            raise ImageError(Reason.UNREADABLE, "a compressed tar cannot be read in place: uncompress it")
        if name is None and not _is_tar(key):
            return read_file(self._objects, key)
        try:
            index = self._index(key)
            member = index.find(name) if name is not None else None
        except PlaceError:
            raise
        except ObjectMissing as error:
            check_reachable(self._objects)
            raise ImageError(Reason.MISSING, "the tar is not there") from error
        except StoreError as error:
            raise ImageError(Reason.UNREADABLE, str(error).replace(f"{self.uri}/", "")) from error
        if member is None:
            raise ImageError(Reason.MISSING, "the tar has no such member")
        if member.flaw is not None:
            raise ImageError(member.flaw, member.detail)
        data = read_file(self._objects, key, member.offset, member.size)
        if len(data) < member.size:
            raise ImageError(Reason.TRUNCATED, "the tar ends before this member does")
        return data

    def _split(self, path: str) -> tuple[str, str | None]:
        """Split a path into the key of a file and, if that is a tar, the member.

        A folder may be named like a tar, so the file must exist.
        """
        for end in (match.end() for match in _END_OF_TAR_NAME.finditer(path)):
            key = text_to_key(path[:end])
            if key in self._indexes or self._has(key):
                return key, path[end + 1 :]
        return text_to_key(path), None

    def _has(self, key: str) -> bool:
        try:
            self._objects.size(key)
        except PlaceError:
            raise
        except (ObjectMissing, StoreError):
            return False
        return True

    def _members(self, key: str, after: str | None) -> Iterator[ImageRecord]:
        try:
            members = self._index(key).members(after)
        except PlaceError:
            raise
        except (ObjectMissing, StoreError):
            check_reachable(self._objects)
            yield _record(key_to_text(key))
            return
        for member in members:
            yield _record(f"{key_to_text(key)}/{member.name}")

    def _index(self, key: str) -> TarIndex:
        # One thread may count the images while another plans them.
        with self._lock:
            if key not in self._indexes:
                self._indexes[key] = TarIndex(self._objects, key, self._kept_indexes, self._index_config)
            self._indexes.move_to_end(key)
            while len(self._indexes) > _MAX_INDEXES:
                self._indexes.popitem(last=False)
            return self._indexes[key]


def _record(path: str) -> ImageRecord:
    match = _SA1B_NAME.search(path)
    return ImageRecord(image_id=path, path=path, coco_id=int(match[1]) if match else None)


def _is_tar(key: str) -> bool:
    return key.lower().endswith(_TAR_SUFFIX) and not is_hidden(key)


def _is_compressed_tar(key: str) -> bool:
    return key.lower().endswith(_COMPRESSED_SUFFIXES) and not is_hidden(key)
