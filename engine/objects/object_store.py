"""The interface of object stores: named bytes in a local folder, an S3 bucket, or memory.

Keys are relative, `/`-separated and listed in the order of their UTF-8 bytes, which is the order of S3, so
that a corpus is listed in the same order from anywhere. Implementations translate the errors of botocore and
of the file system:

    ObjectMissing    no object has the key
    TransientError   a retry may succeed (time-outs, throttling, an unreachable server)
    PlaceError       the bucket or folder as a whole cannot be used (gone, wrong credentials, no permission)
    StoreError       this object cannot be used, and a retry would not help
    RunError         the disk is full
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

from engine.errors import StoreError
from engine.objects.local import LocalObjects


class ObjectStore(Protocol):
    """The place of a label store or a corpus. Pickles are small, and unpickled objects reconnect."""

    @property
    def uri(self) -> str:
        """The place as a path or URI."""

    def read(self, key: str) -> bytes:
        """Read an object. Raises ObjectMissing."""

    def read_range(self, key: str, start: int, size: int) -> bytes:
        """Read `size` bytes of an object from byte `start`, or fewer if it ends. Raises ObjectMissing."""

    def size(self, key: str) -> int:
        """Size of an object in bytes. Raises ObjectMissing."""

    def write(self, key: str, data: bytes) -> None:
        """Write or replace an object atomically."""

    def writer(self, key: str) -> AbstractContextManager[BinaryIO]:
        """Context manager of a file that becomes the object `key` when the block ends; for large objects.

        Takes constant memory. If the block raises or its process dies, `key` is unchanged.
        """

    def create(self, key: str, data: bytes) -> bool:
        """Write an object atomically unless it exists; whether this call wrote it."""

    def delete(self, key: str) -> None:
        """Delete an object if it exists."""

    def keys(self, prefix: str = "", start_after: str = "") -> Iterator[str]:
        """List keys that begin with `prefix` and sort after `start_after`, lazily and in byte order."""


def open_objects(uri: str) -> ObjectStore:
    """Open the objects below a path or `s3://bucket/prefix`; contacts and creates nothing.

    S3 credentials, region and endpoint come from the standard AWS variables and files.
    """
    if uri.startswith("s3://"):
        # Not parsed as a URL, since keys may contain # and ?.
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not bucket:
            raise StoreError(f"{uri!r} names no bucket: write s3://bucket/prefix")
        # Imported late: boto3 takes half a second in every process.
        from engine.objects.s3 import S3Objects

        return S3Objects(bucket, prefix.strip("/"))
    if "://" in uri or uri.startswith("s3:"):
        raise StoreError(f"cannot open {uri!r}: write a path or s3://bucket/prefix")
    return LocalObjects(Path(uri))


def read_uri(uri: str) -> bytes:
    """Read one file or S3 object. Raises ObjectMissing, TransientError or StoreError."""
    objects, name = _open_parent(uri)
    return objects.read(name)


def write_uri(uri: str, data: bytes) -> None:
    """Write or replace one file or S3 object atomically. Raises TransientError or StoreError."""
    objects, name = _open_parent(uri)
    objects.write(name, data)


def _open_parent(uri: str) -> tuple[ObjectStore, str]:
    parent, _, name = uri.rpartition("/")
    return open_objects(parent if parent or not uri.startswith("/") else "/"), name
