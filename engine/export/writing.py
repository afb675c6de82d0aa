"""Many small objects at a time."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from engine.objects.object_store import ObjectStore

_WRITERS = 8


def write_all(objects: ObjectStore, items: Iterable[tuple[str, bytes]]) -> None:
    """Write objects, given as keys and bytes, several at a time; all are held in memory until written."""
    with ThreadPoolExecutor(_WRITERS) as executor:
        for _ in executor.map(lambda item: objects.write(*item), items):
            pass
