"""Prepared images on a node's local disk, so that only the first epoch decodes and segments them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
_DAMAGED = (OSError, EOFError, ValueError, BadZipFile)


class ImageCache:
    """Named arrays per image, in files that processes of one node share; safe to delete between runs.

    Entries are named by the sha256 of their name, in a folder named by the sha256 of the settings that made
    them. Files appear in one step. A damaged entry, as a machine that lost power leaves it, is replaced. The
    cache is never needed: an entry that cannot be written, on a full disk say, leaves no file behind.
    """

    def __init__(self, root: Path, settings: tuple[object, ...]) -> None:
        """`settings` is everything that decides an entry's arrays besides the image; its repr must say so."""
        self._folder = root / hashlib.sha256(repr(settings).encode()).hexdigest()[:16]

    def read(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """The arrays of `name`, from disk, or from `make` and then kept. Raises what `make` raises."""
        path = self._folder / f"{hashlib.sha256(name.encode()).hexdigest()}.npz"
        try:
            return _load(path)
        except _DAMAGED:
            arrays = make()
        _write(path, arrays)
        return arrays


def _load(path: Path) -> dict[str, NDArray[Any]]:
    # Opened here: numpy leaves a damaged file open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _write(path: Path, arrays: Arrays) -> None:
    sink = io.BytesIO()
    np.savez(sink, **arrays)  # type: ignore[arg-type]
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(sink.getvalue())
        partial.replace(path)
    except OSError:
        # If even this fails, the folder is gone or read-only, and so is the file.
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
