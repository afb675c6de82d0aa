"""Numbered files of a folder, each written until it is full."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import BinaryIO, Generic, TypeVar

from engine.objects.object_store import ObjectStore

Opened = TypeVar("Opened")
_FULL_BYTES = 512 << 20
_FULL_IMAGES = 10_000


class RollingFiles(Generic[Opened]):
    """`<folder>/000000<suffix>` and so on, each of at most 10,000 images and about half a gigabyte.

    `open_file` makes of a file what is written to, and what closes the file's content when it is left.
    """

    def __init__(
        self,
        objects: ObjectStore,
        folder: str,
        suffix: str,
        open_file: Callable[[BinaryIO], AbstractContextManager[Opened]],
    ) -> None:
        self._objects = objects
        self._name = f"{folder}/{{:06d}}{suffix}"
        self._open_file = open_file
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
        """Where so much more is to be written."""
        is_full = self._num_images + num_images > _FULL_IMAGES or self._num_bytes + num_bytes > _FULL_BYTES
        if self._current is None or is_full:
            self._stack.close()
            file = self._stack.enter_context(self._objects.writer(self._name.format(self._num_files)))
            self._current = self._stack.enter_context(self._open_file(file))
            self._num_files += 1
            self._num_images = self._num_bytes = 0
        self._num_images += num_images
        self._num_bytes += num_bytes
        return self._current
