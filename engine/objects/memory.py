"""An object store in memory."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from engine.errors import ObjectMissing
from engine.objects.keys import byte_order


class MemoryObjects:
    """Objects in a dictionary, for tests and small experiments; a copy by pickling is independent."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}

    @property
    def uri(self) -> str:
        return "memory:"

    def read(self, key: str) -> bytes:
        if key not in self._objects:
            raise ObjectMissing(f"no object {key!r}")
        return self._objects[key]

    def read_range(self, key: str, start: int, size: int) -> bytes:
        return self.read(key)[start : start + size]

    def size(self, key: str) -> int:
        return len(self.read(key))

    def write(self, key: str, data: bytes) -> None:
        self._objects[key] = data

    @contextmanager
    def writer(self, key: str) -> Iterator[BinaryIO]:
        sink = io.BytesIO()
        yield sink
        self._objects[key] = sink.getvalue()

    def create(self, key: str, data: bytes) -> bool:
        if key in self._objects:
            return False
        self._objects[key] = data
        return True

    def delete(self, key: str) -> None:
        self._objects.pop(key, None)

    def keys(self, prefix: str = "", start_after: str = "") -> Iterator[str]:
        for key in sorted(self._objects, key=byte_order):
            if key.startswith(prefix) and byte_order(key) > byte_order(start_after):
                yield key
