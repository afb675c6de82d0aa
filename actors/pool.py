"""A pool of worker actors, which carries out the decisions of `actors.ledger` with Ray.

Ray moves a chunk's records to a worker and its rows back, nothing else: a worker that dies loses only the
chunks it holds, and those are labelled again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import ray
from ray.exceptions import OutOfMemoryError, RayActorError

from actors.ledger import ChunkLedger, Decision, EndRun, GiveUp, HandOut, StartWorker, StopWorker
from engine.errors import ConfigurationError, DeviceMemoryError, RunError
from engine.labelling.outcomes import rejected_outcome
from engine.types import Chunk, Outcome, Reason

# Most workers that share a GPU: each holds a network and its own share of the memory.
_MAX_WORKERS_PER_GPU = 8
# `WorkerPool.label` yields at least this often, so that its caller can report progress.
_HEARTBEAT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class PoolSize:
    """Number of workers, and the CPUs and GPUs that Ray reserves for each of them."""

    workers: int
    cpus_each: float
    gpus_each: float


def size_pool(num_cpus: float, num_gpus: float) -> PoolSize:
    """The largest pool that fits a cluster; Ray would wait silently, without end, for CPUs that do not exist.

    Without GPUs there is one worker per core. With GPUs, up to 8 workers share each of them, as far as there
    are cores: while some read, find proposals and pack masks on the CPU, others keep the GPU busy. Workers
    that do not fit in its memory are dropped later, see `WorkerPool`. Raises ConfigurationError for less than
    one CPU.

    >>> size_pool(2, 0).workers, size_pool(64, 8).workers
    (2, 64)
    """
    whole_cpus, whole_gpus = math.floor(num_cpus), math.floor(num_gpus)
    if whole_cpus < 1:
        raise ConfigurationError(f"the cluster has {num_cpus} free CPUs; labelling needs at least one")
    workers, per_gpu = whole_cpus, 1
    if whole_gpus > 0:
        # A power of two, so that Ray counts the share of a GPU exactly.
        while per_gpu < _MAX_WORKERS_PER_GPU and 2 * per_gpu * whole_gpus <= whole_cpus:
            per_gpu *= 2
        workers = per_gpu * whole_gpus
    # Rounded down to hundredths, which Ray can count, leaving a little for other processes of the run.
    cpus_each = min(1.0, math.floor(0.9 * whole_cpus / workers * 100) / 100)
    return PoolSize(workers=workers, cpus_each=cpus_each, gpus_each=1.0 / per_gpu if whole_gpus > 0 else 0.0)


class ActorRuntime(Protocol):
    """The functions of the `ray` module that a pool calls."""

    def wait(self, refs: list[Any], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]: ...

    def get(self, ref: Any) -> Any: ...

    def kill(self, actor: Any) -> None: ...


_RAY = cast(ActorRuntime, ray)


@dataclass(frozen=True)
class _Call:
    """A call of a worker whose answer is awaited: `label(chunk)`, or `start()` if there is no chunk."""

    worker: int
    chunk: Chunk | None


class WorkerPool:
    """Up to `size` actors with the methods of `actors.workers.Worker`, made by `make_actor`."""

    def __init__(self, make_actor: Callable[[], Any], size: int, runtime: ActorRuntime = _RAY) -> None:
        self._make_actor = make_actor
        self._size = size
        self._runtime = runtime
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, _Call] = {}

    def label(self, chunks: Iterator[Chunk]) -> Generator[list[Outcome]]:
        """Label all chunks; yields rows as they come, and an empty list if none came for a few seconds.

        `chunks` may end for now and have more after rows were yielded: an iterator that is asked again.

        A worker that dies is replaced and its chunks are labelled again. A worker that runs out of memory is
        dropped and its chunks go to the others. Ends with the last row, even if some workers have not started
        by then. Raises RunError if no worker is left or workers keep dying before they have started, and
        whatever a worker's `start` or `label` raises.
        """
        ledger = ChunkLedger(chunks)
        try:
            yield from self._carry_out(ledger.begin(self._size))
            while not ledger.is_finished():
                answers = self._wait()
                if not answers:
                    yield []
                for answer in answers:
                    yield from self._take(answer, ledger)
        finally:
            for actor in self._actors.values():
                self._runtime.kill(actor)

    def _wait(self) -> list[Any]:
        """Wait for an answer, then return all that have come: a wait takes time for every pending call."""
        pending = list(self._calls)
        self._runtime.wait(pending, num_returns=1, timeout=_HEARTBEAT_S)
        answers, _ = self._runtime.wait(pending, num_returns=len(pending), timeout=0)
        return answers

    def _take(self, answer: Any, ledger: ChunkLedger) -> Iterator[list[Outcome]]:
        """Report an answer to the ledger, yield its rows and carry out the ledger's decisions."""
        call = self._calls.pop(answer, None)
        if call is None or ledger.is_finished():
            return  # its worker was stopped after the wait, or started too late to be needed
        try:
            rows = self._runtime.get(answer)
        except RayActorError as error:
            decisions = ledger.worker_died(call.worker, preempted=error.preempted, error=str(error))
        except (DeviceMemoryError, OutOfMemoryError) as error:
            memory = "the GPU's memory" if isinstance(error, DeviceMemoryError) else "memory"
            cause = getattr(error, "cause", error)  # without the worker's traceback
            decisions = ledger.worker_out_of_memory(call.worker, memory=memory, error=str(cause))
        else:
            if call.chunk is None:
                decisions = ledger.worker_started(call.worker)
            else:
                yield rows
                decisions = ledger.chunk_done(call.worker, call.chunk)
        yield from self._carry_out(decisions)
        if any(isinstance(decision, GiveUp) for decision in decisions):
            yield from self._carry_out(ledger.source_refilled())

    def _carry_out(self, decisions: list[Decision]) -> Iterator[list[Outcome]]:
        for decision in decisions:
            match decision:
                case StartWorker(worker):
                    self._actors[worker] = self._make_actor()
                    self._calls[self._actors[worker].start.remote()] = _Call(worker, None)
                case HandOut(worker, chunk):
                    self._calls[self._actors[worker].label.remote(chunk)] = _Call(worker, chunk)
                case StopWorker(worker):
                    self._stop(worker)
                case GiveUp(record, crashes):
                    detail = f"{crashes} workers died while they had this image"
                    yield [rejected_outcome(record, Reason.FAILED, detail)]
                case EndRun(reason):
                    raise RunError(reason)

    def _stop(self, worker: int) -> None:
        self._calls = {answer: call for answer, call in self._calls.items() if call.worker != worker}
        # A worker that is only out of reach must not work on.
        self._runtime.kill(self._actors.pop(worker))
