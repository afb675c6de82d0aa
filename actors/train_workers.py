"""Workers of a training: their number and size, their metrics, and the first error among them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch

from actors.monitor import Figures
from engine.errors import ConfigurationError

# Deaths of workers that were nobody's will; nodes that are taken away are counted apart and never too many.
MAX_FAULTS = 3


POLL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class WorkerSizes:
    """How many workers train, and what each of them gets."""

    workers: int
    cpus_each: int
    use_gpu: bool

    def __post_init__(self) -> None:
        for name in ("workers", "cpus_each"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is at least 1, got {getattr(self, name)}")


def size_workers(cpus: float, gpus: float, node_cpus: float, workers: int | None) -> WorkerSizes:
    """Workers for a cluster with so many free CPUs and GPUs, whose largest node has `node_cpus`.

    One for each GPU unless `workers` says otherwise, without GPUs one in all. Raises ConfigurationError where
    the cluster has not enough: Ray would wait for it for ever.

    >>> size_workers(32, 4, 16, None)
    WorkerSizes(workers=4, cpus_each=8, use_gpu=True)
    """
    use_gpu = gpus >= 1
    if workers is None:
        workers = int(gpus) if use_gpu else 1
    if workers > cpus or (use_gpu and workers > gpus):
        raise ConfigurationError(
            f"{workers} workers need a CPU{' and a GPU' if use_gpu else ''} each, and {cpus:g} CPUs and "
            f"{gpus:g} GPUs are free: give --workers {max(int(min(cpus, gpus) if use_gpu else cpus), 1)}"
        )
    return WorkerSizes(workers=workers, cpus_each=int(min(cpus // workers, node_cpus)), use_gpu=use_gpu)


@contextlib.contextmanager
def forwarded(monitor: Any, on_figures: Callable[[int, Figures], None]) -> Iterator[None]:
    """While the block runs, hand figures on as they come; those that are left, at its end."""
    is_over = threading.Event()

    def forward() -> None:
        while True:
            was_over = is_over.wait(POLL_S)
            for step, figures in ray.get(monitor.drain_metrics.remote()):
                on_figures(step, figures)
            if was_over:
                return

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def first_cause(error: Exception) -> str:
    """The last line of the first worker's error, or of the error itself."""
    failures = getattr(error, "worker_failures", {})
    shown = str(next(iter(failures.values()), error)).strip()
    return shown.splitlines()[-1] if shown else type(error).__name__
