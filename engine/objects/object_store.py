"""Named bytes in one of three places: a local folder, an S3 bucket, or memory.

Keys are relative, `/`-separated and listed in the order of their UTF-8 bytes, which is S3's order, so that a
corpus is read in the same order from everywhere. botocore's and the file system's errors end here:

    ObjectMissing    no object has the key
    TransientError   worth another try (time-outs, throttling, a server that is away)
    StoreError       nothing that another try would mend (no such bucket, wrong credentials, no permission)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

from engine.errors import StoreError
from engine.objects.local import LocalObjects


class ObjectStore(Protocol):
    """Where a store or a corpus lives. Implementations pickle small and reconnect after unpickling."""

    @property
    def uri(self) -> str:
        """The place, as the user would write it."""

    def read(self, key: str) -> bytes:
        """The bytes of an object. Raises ObjectMissing."""

    def read_range(self, key: str, start: int, size: int) -> bytes:
        """The `size` bytes of an object from byte `start` on, fewer where it ends. Raises ObjectMissing."""

    def size(self, key: str) -> int:
        """How many bytes an object has. Raises ObjectMissing."""

    def write(self, key: str, data: bytes) -> None:
        """Make `key` hold `data`, in one step, whether or not it existed."""

    def writer(self, key: str) -> AbstractContextManager[BinaryIO]:
        """A file to write a long object to, in constant memory: `key` holds it once the block has ended.

        Where the block raises, or its process dies, `key` stays as it was.
        """

    def create(self, key: str, data: bytes) -> bool:
        """Make `key` hold `data` in one step unless it exists; True if this call made it."""

    def delete(self, key: str) -> None:
        """Make `key` hold nothing, whether or not it existed."""

    def keys(self, prefix: str = "", start_after: str = "") -> Iterator[str]:
        """Keys that begin with `prefix` and sort after `start_after`, in byte order, as they are listed."""


def open_objects(uri: str) -> ObjectStore:
    """The objects below a path or `s3://bucket/prefix`; nothing is contacted or created yet.

    S3 credentials, region and endpoint come from the standard AWS variables and files.
    """
    if uri.startswith("s3://"):
        # No URL: keys may hold # and ?.
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not bucket:
            raise StoreError(f"{uri!r} names no bucket: write s3://bucket/prefix")
        # boto3 takes half a second to import, in every process.
        from engine.objects.s3 import S3Objects

        return S3Objects(bucket, prefix.strip("/"))
    if "://" in uri or uri.startswith("s3:"):
        raise StoreError(f"cannot open {uri!r}: write a path or s3://bucket/prefix")
    return LocalObjects(Path(uri))


def read_uri(uri: str) -> bytes:
    """The bytes of one file or S3 object. Raises ObjectMissing, TransientError or StoreError."""
    objects, name = _open_parent(uri)
    return objects.read(name)


def write_uri(uri: str, data: bytes) -> None:
    """Make one file or S3 object hold `data`, in one step. Raises TransientError or StoreError."""
    objects, name = _open_parent(uri)
    objects.write(name, data)


def _open_parent(uri: str) -> tuple[ObjectStore, str]:
    parent, _, name = uri.rpartition("/")
    return open_objects(parent if parent or not uri.startswith("/") else "/"), name
