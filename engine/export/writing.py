"""Concurrent writes of many small objects."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from engine.objects.object_store import ObjectStore

_WRITERS = 8


def write_all(objects: ObjectStore, items: Iterable[tuple[str, bytes]]) -> None:
    """Write (key, bytes) pairs concurrently; all of them are held in memory."""
    with ThreadPoolExecutor(_WRITERS) as executor:
        for _ in executor.map(lambda item: objects.write(*item), items):
            pass
