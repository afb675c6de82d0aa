"""Objects as files below a folder."""

from __future__ import annotations

import errno
import functools
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from engine.errors import ObjectMissing, RunError, StoreError
from engine.objects.keys import byte_order

# Unfinished files of writers that were killed; no listing shows them.
PARTIAL_PREFIX = ".partial-"
# A disk or a share of it that fills up in a run is nobody's wrong use.
_FULL = (errno.ENOSPC, errno.EDQUOT)


class LocalObjects:
    """Objects as files below a folder."""

    def __init__(self, root: Path) -> None:
        # Workers run in another directory than the driver, so the path is fixed where it was written.
        self._root = Path(os.path.abspath(root.expanduser()))

    @property
    def uri(self) -> str:
        return str(self._root)

    def read(self, key: str) -> bytes:
        with self._plain_file(key) as path:
            return path.read_bytes()

    def read_range(self, key: str, start: int, size: int) -> bytes:
        with self._plain_file(key) as path, path.open("rb") as file:
            file.seek(start)
            # Python reserves what is asked for, not what there is.
            return file.read(max(0, min(size, os.fstat(file.fileno()).st_size - start)))

    def size(self, key: str) -> int:
        with self._plain_file(key) as path:
            return path.stat().st_size

    def write(self, key: str, data: bytes) -> None:
        with self.writer(key) as file:
            file.write(data)

    @contextmanager
    def writer(self, key: str) -> Iterator[BinaryIO]:
        path = self._path(key)
        with _os_errors_as_store_errors("write", path), _unnamed_file(path.parent) as (file, link_as):
            yield file
            _sync(file)
            beside = _partial_path(path.parent)
            link_as(beside)
            os.replace(beside, path)

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with _os_errors_as_store_errors("write", path), _unnamed_file(path.parent) as (file, link_as):
            file.write(data)
            _sync(file)
            try:
                link_as(path)
            except FileExistsError:
                return False
        return True

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _os_errors_as_store_errors("delete", path):
            path.unlink(missing_ok=True)

    def keys(self, prefix: str = "", start_after: str = "") -> Iterator[str]:
        folder, _, _ = prefix.rpartition("/")
        for key in self._walk(self._path(folder), f"{folder}/" if folder else "", start_after, frozenset()):
            if key.startswith(prefix) and byte_order(key) > byte_order(start_after):
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
            raise StoreError(
                f"cannot list {folder}: {_os_reason(error)}; make it readable, or move it elsewhere"
            ) from error
        for name in sorted(names, key=byte_order):
            if not name.endswith("/"):
                if not name.startswith(PARTIAL_PREFIX):
                    yield prefix + name
            # A folder none of whose keys can come after `start_after` is not opened.
            elif byte_order(prefix + name) + b"\xff" > byte_order(start_after):
                yield from self._walk(folder / name, prefix + name, start_after, above | {identity})

    @contextmanager
    def _plain_file(self, key: str) -> Iterator[Path]:
        """The path of a key, for reading."""
        path = self._path(key)
        try:
            # A pipe or device would block for ever; whatever is no plain file is not read.
            if not stat.S_ISREG(path.stat().st_mode):
                raise StoreError(f"{path} is not a regular file")
            yield path
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ObjectMissing(f"no file {path}") from error
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read {path}: {_os_reason(error)}") from error

    def _path(self, key: str) -> Path:
        if key.startswith("/") or ".." in key.split("/"):
            raise StoreError(f"key {key!r} would leave {self._root}")
        return self._root / key


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # A link that leads nowhere is no folder; asking the entry itself would raise.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _os_reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@contextmanager
def _os_errors_as_store_errors(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise RunError(
                f"cannot {verb} {path}: {_os_reason(error)}; make room and run the same command again"
            ) from error
        raise StoreError(f"cannot {verb} {path}: {_os_reason(error)}") from error


@contextmanager
def _unnamed_file(folder: Path) -> Iterator[tuple[BinaryIO, Callable[[Path], None]]]:
    """A new file on the disk of `folder`, and the call that names it (never an existing name).

    Where the system can, the file is nameless until then, so that a killed writer leaves nothing behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, partial = _open_nameless(folder), None
    if descriptor is None:
        partial = _partial_path(folder)
        descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield (
                file,
                functools.partial(os.link, partial)
                if partial
                else functools.partial(_link_descriptor, file.fileno()),
            )
    finally:
        if partial:
            partial.unlink(missing_ok=True)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


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
