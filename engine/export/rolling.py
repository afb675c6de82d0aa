"""Numbered files of limited size in one folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import BinaryIO, Generic, TypeVar

from engine.objects.object_store import ObjectStore

Opened = TypeVar("Opened")
MAX_IMAGES = 10_000
_MAX_BYTES = 512 << 20


class RollingFiles(Generic[Opened]):
    """Files `<folder>/000000<suffix>` and so on, each of at most `max_images` and about half a gigabyte.

    `open_file` wraps a binary file in the writer that `file_for` returns.
    """

    def __init__(
        self,
        objects: ObjectStore,
        folder: str,
        suffix: str,
        open_file: Callable[[BinaryIO], AbstractContextManager[Opened]],
        max_images: int = MAX_IMAGES,
    ) -> None:
        self._objects = objects
        self._name = f"{folder}/{{:06d}}{suffix}"
        self._open_file = open_file
        self._max_images = max_images
        self._stack = ExitStack()
        self._current: Opened | None = None
        self._num_files = self._num_images = self._num_bytes = 0

    def __enter__(self) -> RollingFiles[Opened]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def file_for(self, num_images: int, num_bytes: int) -> Opened:
        """The writer to add `num_images` images of `num_bytes` to; a new file if the current one is full."""
        is_full = self._num_images + num_images > self._max_images or self._num_bytes + num_bytes > _MAX_BYTES
        if self._current is None or is_full:
            self._stack.close()
            file = self._stack.enter_context(self._objects.writer(self._name.format(self._num_files)))
            self._current = self._stack.enter_context(self._open_file(file))
            self._num_files += 1
            self._num_images = self._num_bytes = 0
        self._num_images += num_images
        self._num_bytes += num_bytes
        return self._current
