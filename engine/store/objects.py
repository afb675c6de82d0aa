"""Named bytes in one of three places: a local folder, an S3 bucket, or memory.

Keys are relative, `/`-separated and listed in the order of their UTF-8 bytes, which is S3's order, so that a
corpus is read in the same order from everywhere. botocore's and the file system's errors end here:

    ObjectMissing    no object has the key
    TransientError   worth another try (time-outs, throttling, a server that is away)
    StoreError       nothing that another try would mend (no such bucket, wrong credentials, no permission)
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import boto3
import botocore.config
import botocore.exceptions

from engine.errors import ObjectMissing, StoreError, TransientError

_CONFLICT_CODES = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_MISSING_CODES = frozenset({"NoSuchKey", "404", "NotFound"})
_TRANSIENT_CODES = frozenset(
    {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "InternalError", "ServiceUnavailable"}
)
# Unfinished files of writers that were killed; no listing shows them.
PARTIAL_PREFIX = ".partial-"
# urllib3 gives up after this long without a byte; botocore then waits and tries again, ten times in all.
_S3_TIMEOUT_S = 30
_S3_ATTEMPTS = 10


class ObjectStore(Protocol):
    """Where a store or a corpus lives. Implementations pickle small and reconnect after unpickling."""

    @property
    def uri(self) -> str:
        """The place, as the user would write it."""

    def read(self, key: str) -> bytes:
        """The bytes of an object. Raises ObjectMissing."""

    def write(self, key: str, data: bytes) -> None:
        """Make `key` hold `data`, in one step, whether or not it existed."""

    def create(self, key: str, data: bytes) -> bool:
        """Make `key` hold `data` in one step unless it exists; True if this call made it."""

    def keys(self, prefix: str = "", start_after: str = "") -> Iterator[str]:
        """Keys that begin with `prefix` and sort after `start_after`, in byte order, as they are listed."""


def open_objects(uri: str) -> ObjectStore:
    """The objects below a path or `s3://bucket/prefix`; nothing is contacted or created yet.

    S3 credentials, region and endpoint come from the standard AWS variables and files.
    """
    if uri.startswith("s3://"):
        parts = urlsplit(uri)
        if not parts.netloc:
            raise StoreError(f"{uri!r} names no bucket: write s3://bucket/prefix")
        return S3Objects(parts.netloc, parts.path.strip("/"))
    if "://" in uri:
        raise StoreError(f"cannot open {uri!r}: write a path or s3://bucket/prefix")
    return LocalObjects(Path(uri))


def read_uri(uri: str) -> bytes:
    """The bytes of one file or S3 object. Raises ObjectMissing, TransientError or StoreError."""
    parent, _, name = uri.rpartition("/")
    return open_objects(parent if parent or not uri.startswith("/") else "/").read(name)


class LocalObjects:
    """Objects as files below a folder."""

    def __init__(self, root: Path) -> None:
        # Workers run in another directory than the driver, so the path is fixed where it was written.
        self._root = Path(os.path.abspath(root.expanduser()))

    @property
    def uri(self) -> str:
        return str(self._root)

    def read(self, key: str) -> bytes:
        path = self._path(key)
        try:
            # A pipe or device would block for ever; whatever is no plain file is not read.
            if not stat.S_ISREG(path.stat().st_mode):
                raise StoreError(f"{path} is not a regular file")
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ObjectMissing(f"no file {path}") from error
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read {path}: {_os_reason(error)}") from error

    def write(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with _os_errors_as_store_errors("write", path), _synced_file(path.parent, data) as link_as:
            beside = _partial_path(path.parent)
            link_as(beside)
            os.replace(beside, path)

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with _os_errors_as_store_errors("write", path), _synced_file(path.parent, data) as link_as:
            try:
                link_as(path)
            except FileExistsError:
                return False
        return True

    def keys(self, prefix: str = "", start_after: str = "") -> Iterator[str]:
        folder, _, _ = prefix.rpartition("/")
        for key in self._walk(self._path(folder), f"{folder}/" if folder else "", start_after, frozenset()):
            if key.startswith(prefix) and _byte_order(key) > _byte_order(start_after):
                yield key

    def _walk(
        self, folder: Path, prefix: str, start_after: str, above: frozenset[tuple[int, int]]
    ) -> Iterator[str]:
        """Keys below `folder`; sorting folders as "name/" makes the walk's order that of the whole keys."""
        try:
            status = folder.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in above:  # a link to a folder that holds it
                return
            with os.scandir(folder) as entries:
                names = [entry.name + "/" if _is_folder(entry) else entry.name for entry in entries]
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"cannot list {folder}: {_os_reason(error)}") from error
        for name in sorted(names, key=_byte_order):
            if not name.endswith("/"):
                if not name.startswith(PARTIAL_PREFIX):
                    yield prefix + name
            # A folder none of whose keys can come after `start_after` is not opened.
            elif _byte_order(prefix + name) + b"\xff" > _byte_order(start_after):
                yield from self._walk(folder / name, prefix + name, start_after, above | {identity})

    def _path(self, key: str) -> Path:
        if key.startswith("/") or ".." in key.split("/"):
            raise StoreError(f"key {key!r} would leave {self._root}")
        return self._root / key


class S3Objects:
    """Objects of an S3 bucket below a prefix."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._connection: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connection": None}

    @property
    def uri(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    @property
    def _client(self) -> Any:
        if self._connection is None:
            config = botocore.config.Config(
                connect_timeout=_S3_TIMEOUT_S,
                read_timeout=_S3_TIMEOUT_S,
                retries={"mode": "standard", "max_attempts": _S3_ATTEMPTS},
            )
            self._connection = boto3.Session().client("s3", config=config)
        return self._connection

    def read(self, key: str) -> bytes:
        with self._translated_errors(key):
            data: bytes = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)["Body"].read()
            return data

    def write(self, key: str, data: bytes) -> None:
        with self._translated_errors(key):
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data)

    def create(self, key: str, data: bytes) -> bool:
        with self._translated_errors(key):
            try:
                self._client.put_object(
                    Bucket=self._bucket, Key=self._prefix + key, Body=data, IfNoneMatch="*"
                )
            except botocore.exceptions.ClientError as error:
                if error.response["Error"]["Code"] in _CONFLICT_CODES:
                    return False
                raise
        return True

    def keys(self, prefix: str = "", start_after: str = "") -> Iterator[str]:
        request = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        if start_after:
            request["StartAfter"] = self._prefix + start_after
        with self._translated_errors(prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(**request):
                for entry in page.get("Contents", ()):
                    key = entry["Key"].removeprefix(self._prefix)
                    # Some servers ignore StartAfter; "folder/" markers are no objects.
                    if key and not key.endswith("/") and _byte_order(key) > _byte_order(start_after):
                        yield key

    @contextmanager
    def _translated_errors(self, key: str) -> Iterator[None]:
        place = f"s3://{self._bucket}/{self._prefix}{key}"
        try:
            yield
        except botocore.exceptions.ClientError as error:
            raise _client_error(error, place) from error
        except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError) as error:
            raise StoreError(
                f"no S3 credentials for {place}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        except (
            botocore.exceptions.HTTPClientError,
            botocore.exceptions.ConnectionError,
            botocore.exceptions.IncompleteReadError,
            botocore.exceptions.ResponseStreamingError,
        ) as error:
            raise TransientError(f"no answer for {place}: {type(error).__name__}") from error
        except botocore.exceptions.BotoCoreError as error:
            raise StoreError(f"cannot use {place}: {error}") from error


class MemoryObjects:
    """Objects in a dictionary, for tests and small experiments."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}

    @property
    def uri(self) -> str:
        return "memory:"

    def read(self, key: str) -> bytes:
        if key not in self._objects:
            raise ObjectMissing(f"no object {key!r}")
        return self._objects[key]

    def write(self, key: str, data: bytes) -> None:
        self._objects[key] = data

    def create(self, key: str, data: bytes) -> bool:
        if key in self._objects:
            return False
        self._objects[key] = data
        return True

    def keys(self, prefix: str = "", start_after: str = "") -> Iterator[str]:
        for key in sorted(self._objects, key=_byte_order):
            if key.startswith(prefix) and _byte_order(key) > _byte_order(start_after):
                yield key


def _client_error(error: botocore.exceptions.ClientError, place: str) -> Exception:
    """What an S3 answer with an error code means for us."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _MISSING_CODES:
        return ObjectMissing(f"no object {place}")
    if code == "NoSuchBucket":
        return StoreError(f"no such bucket: {place}; create it or correct the name")
    if code in _TRANSIENT_CODES or status >= 500:
        return TransientError(f"{place} answered {code or status}")
    return StoreError(f"{place} answered {code or status}: check the credentials, the endpoint and the name")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # A link that leads nowhere is no folder; asking the entry itself would raise.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _byte_order(key: str) -> bytes:
    return os.fsencode(key)


def _os_reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@contextmanager
def _os_errors_as_store_errors(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot {verb} {path}: {_os_reason(error)}") from error


@contextmanager
def _synced_file(folder: Path, data: bytes) -> Iterator[Callable[[Path], None]]:
    """A synced file with `data` on the disk of `folder`, and the call that names it (never an existing name).

    Where the system can, the file is nameless until then, so that a killed writer leaves nothing behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, partial = _open_nameless(folder), None
    if descriptor is None:
        partial = _partial_path(folder)
        descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            yield (
                functools.partial(os.link, partial)
                if partial
                else functools.partial(_link_descriptor, file.fileno())
            )
    finally:
        if partial:
            partial.unlink(missing_ok=True)


def _link_descriptor(descriptor: int, path: Path) -> None:
    """Name a nameless open file `path`; FileExistsError if something has that name."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # A folder descriptor makes Python call linkat, which follows /proc's link to the open file.
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=folder)
    finally:
        os.close(folder)


def _partial_path(folder: Path) -> Path:
    return folder / f"{PARTIAL_PREFIX}{uuid.uuid4().hex}"


def _open_nameless(folder: Path) -> int | None:
    """A writable file without a name in `folder`, or None where the system has no such thing."""
    flag = getattr(os, "O_TMPFILE", None)
    if flag is None or not os.path.exists("/proc/self/fd"):
        return None
    try:
        return os.open(folder, flag | os.O_WRONLY, 0o666)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return None
        raise
