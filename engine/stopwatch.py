"""Timing of the stages of a computation; a stage that nobody times costs a microsecond."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Seconds = dict[str, float]
_running: ContextVar[Seconds | None] = ContextVar("running stopwatch", default=None)


@contextmanager
def timed_stages() -> Iterator[Seconds]:
    """Time the stages that this thread runs in the block: seconds by name, in the order of their first end.

    >>> with timed_stages() as seconds, stage("decode"):
    ...     pass
    >>> list(seconds)
    ['decode']
    """
    seconds: Seconds = {}
    token = _running.set(seconds)
    try:
        yield seconds
    finally:
        _running.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Time the block as the stage `name`, including work queued on a GPU; stages are not nested."""
    seconds = _running.get()
    if seconds is None:
        yield
        return
    _wait_for_gpu()
    start = time.perf_counter()
    yield
    _wait_for_gpu()
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def _wait_for_gpu() -> None:
    """Wait for queued kernels, whose time would otherwise be counted in a later stage."""
    # The decoding process does not import torch.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
