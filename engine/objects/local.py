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

from engine.errors import ObjectMissing, PlaceError, RunError, StoreError
from engine.objects.keys import byte_order

# Name prefix of unfinished files, which killed writers leave behind; they are not listed.
PARTIAL_PREFIX = ".partial-"
# Errors of a full disk or quota, which are no mistake of the user.
_FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT)
# Errors of a network file system or a disk that is no longer there.
_PLACE_ERRORS = (
    errno.ESTALE,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ETIMEDOUT,
    errno.ENODEV,
)


class LocalObjects:
    """Objects as files below a folder."""

    def __init__(self, root: Path, *, nameless: bool = True) -> None:
        """Unfinished files have no name if `nameless` and the system supports it, else a hidden one."""
        # Absolute, since workers run in another working directory than the driver.
        self._root = Path(os.path.abspath(root.expanduser()))
        self._nameless = nameless

    @property
    def uri(self) -> str:
        return str(self._root)

    def read(self, key: str) -> bytes:
        with self._plain_file(key) as path:
            return path.read_bytes()

    def read_range(self, key: str, start: int, size: int) -> bytes:
        with self._plain_file(key) as path, path.open("rb") as file:
            file.seek(start)
            # Not beyond the end: Python allocates the requested size before it reads.
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
        with _os_errors_as_store_errors("write", path), self._new_file(path.parent) as (file, link_as):
            yield file
            _sync(file)
            partial = _partial_path(path.parent)
            link_as(partial)
            os.replace(partial, path)

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with _os_errors_as_store_errors("write", path), self._new_file(path.parent) as (file, link_as):
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

    def check_not_empty(self) -> None:
        """Raise PlaceError if the folder is gone or empty, as a mount point is after an unmount."""
        try:
            with os.scandir(self._root) as entries:
                if next(entries, None) is not None:
                    return
        except OSError as error:
            raise PlaceError(f"the folder {self._root} is gone ({_os_reason(error)})") from error
        raise PlaceError(f"the folder {self._root} is empty now: is its disk still mounted?")

    def _walk(
        self, folder: Path, prefix: str, start_after: str, above: frozenset[tuple[int, int]]
    ) -> Iterator[str]:
        """List keys below `folder` in byte order: folders sort as "name/", as they do within keys.

        `above` identifies the folders that this one was reached through.
        """
        try:
            status = folder.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in above:  # a link to one of the folders above
                return
            with os.scandir(folder) as entries:
                names = [entry.name + "/" if _is_folder(entry) else entry.name for entry in entries]
        except FileNotFoundError as error:
            if not above:
                return
            raise PlaceError(f"{folder} vanished while {self._root} was listed") from error
        except OSError as error:
            if error.errno in _PLACE_ERRORS:
                raise PlaceError(f"cannot list {folder}: {_os_reason(error)}") from error
            raise StoreError(
                f"cannot list {folder}: {_os_reason(error)}; make it readable, or move it elsewhere"
            ) from error
        for name in sorted(names, key=byte_order):
            if not name.endswith("/"):
                if not name.startswith(PARTIAL_PREFIX):
                    yield prefix + name
            # Folders whose keys all sort before `start_after` are not opened.
            elif byte_order(prefix + name) + b"\xff" > byte_order(start_after):
                yield from self._walk(folder / name, prefix + name, start_after, above | {identity})

    @contextmanager
    def _plain_file(self, key: str) -> Iterator[Path]:
        """Context manager of the path of a regular file to read; translates errors."""
        path = self._path(key)
        try:
            # Reading a pipe or a device could block for ever.
            if not stat.S_ISREG(path.stat().st_mode):
                raise StoreError(f"{path} is not a regular file")
            yield path
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ObjectMissing(f"no file {path}") from error
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _PLACE_ERRORS:
                raise PlaceError(f"cannot read {path}: {_os_reason(error)}") from error
            raise StoreError(f"cannot read {path}: {_os_reason(error)}") from error

    @contextmanager
    def _new_file(self, folder: Path) -> Iterator[tuple[BinaryIO, Callable[[Path], None]]]:
        """A new file on the disk of `folder`, and a function that links it as a path that does not exist.

        A nameless file vanishes if its writer is killed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _open_nameless(folder) if self._nameless else None
        if descriptor is not None:
            with os.fdopen(descriptor, "wb") as file:
                yield file, functools.partial(_link_descriptor, file.fileno())
            return
        partial = _partial_path(folder)
        try:
            with partial.open("xb") as file:
                yield file, functools.partial(os.link, partial)
        finally:
            partial.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        if key.startswith("/") or ".." in key.split("/"):
            raise StoreError(f"key {key!r} leads out of {self._root}")
        return self._root / key


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # `entry.is_dir` raises for some broken links, os.path.isdir does not.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _os_reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@contextmanager
def _os_errors_as_store_errors(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL_DISK_ERRORS:
            raise RunError(
                f"cannot {verb} {path}: {_os_reason(error)}; make room and run the same command again"
            ) from error
        raise StoreError(f"cannot {verb} {path}: {_os_reason(error)}") from error


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _link_descriptor(descriptor: int, path: Path) -> None:
    """Link a nameless open file as `path`. Raises FileExistsError if the path exists."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # With a folder descriptor Python calls linkat, which follows the link in /proc to the open file.
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=folder)
    finally:
        os.close(folder)


def _partial_path(folder: Path) -> Path:
    return folder / f"{PARTIAL_PREFIX}{uuid.uuid4().hex}"


def _open_nameless(folder: Path) -> int | None:
    """Open a writable file without a name in `folder`; None if the system does not support it."""
    flag = getattr(os, "O_TMPFILE", None)
    if flag is None or not os.path.exists("/proc/self/fd"):
        return None
    try:
        return os.open(folder, flag | os.O_WRONLY, 0o666)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return None
        raise
