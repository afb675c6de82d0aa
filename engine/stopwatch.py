"""How long the stages of a computation take, for whoever asks; elsewhere a stage costs a microsecond."""

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
    """Seconds of the stages that this thread passes inside, by name, in the order in which they first end.

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
    """What happens inside belongs to the stage `name`, on a GPU as well; stages do not hold others."""
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
    """Kernels are only queued by the stage that starts them, and would be paid for by a later one."""
    # A process that only decodes has no torch to wait for.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
