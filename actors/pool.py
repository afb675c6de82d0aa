"""Workers that are handed chunks, each a little ahead, and replaced where they die.

Ray moves one chunk's records to a worker and its rows back, nothing else: a worker that dies has lost only
what it was at, and that is done again. No chunk waits for a worker that has not started.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError

from engine.errors import ConfigurationError, DeviceMemoryError, RunError
from engine.labelling.outcomes import rejected_outcome
from engine.types import Chunk, Outcome, Reason

# Chunks that a worker has at one time: while it computes one, it reads the next.
MAX_IN_FLIGHT = 2
# Workers that share a GPU at most: each holds a network and its own share of the memory.
_WORKERS_ON_A_GPU = 8
# A chunk with which so many workers have died is taken apart, and an image given up; the last times it was
# alone with its worker. A machine that was taken away does not count.
_DEATHS_OF_A_CHUNK = 2
_DEATHS_OF_AN_IMAGE = 3
# Whoever watches the run hears of it this often, even where nothing has come.
_HEARTBEAT_S = 5.0
# So many workers in a row may die before they have started.
_FAILED_STARTS = 3


@dataclass(frozen=True, kw_only=True)
class PoolSize:
    """How many workers there are, and the CPUs and GPUs that Ray reserves for each of them."""

    workers: int
    cpus_each: float
    gpus_each: float


def size_pool(num_cpus: float, num_gpus: float) -> PoolSize:
    """A pool that fills a cluster and never exceeds it: Ray waits for ever, in silence, for CPUs it has not.

    Without GPUs there is one worker a core. Up to 8 share a GPU, as far as there are cores for them: while
    some read, find proposals and pack masks on the CPU, it has work from others; those that turn out to have
    no room in its memory go again (`WorkerPool`). Raises ConfigurationError for less than one CPU.

    >>> size_pool(2, 0).workers, size_pool(64, 8).workers
    (2, 64)
    """
    whole_cpus, whole_gpus = math.floor(num_cpus), math.floor(num_gpus)
    if whole_cpus < 1:
        raise ConfigurationError(f"the cluster has {num_cpus} free CPUs; labelling needs at least one")
    workers, each_gpu = whole_cpus, 1
    if whole_gpus > 0:
        # A power of two, whose share of a GPU Ray counts exactly.
        while each_gpu < _WORKERS_ON_A_GPU and 2 * each_gpu * whole_gpus <= whole_cpus:
            each_gpu *= 2
        workers = each_gpu * whole_gpus
    # Rounded down to what Ray can count, with a little left for what else runs there.
    cpus_each = min(1.0, math.floor(0.9 * whole_cpus / workers * 100) / 100)
    return PoolSize(workers=workers, cpus_each=cpus_each, gpus_each=1.0 / each_gpu if whole_gpus > 0 else 0.0)


@dataclass(eq=False)
class _PooledWorker:
    """A worker of the pool, and the chunks it has in hand."""

    actor: Any
    has_started: bool = False
    is_alone: bool = False
    chunks: list[Chunk] = field(default_factory=list)


class WorkerPool:
    """Up to `size` actors with the methods of `actors.workers.Worker`, which `make_actor` makes."""

    def __init__(self, make_actor: Callable[[], Any], size: int) -> None:
        self._make_actor = make_actor
        self._size = size
        self._members: list[_PooledWorker] = []
        # What a member was asked: to label a chunk, or to start.
        self._asked: dict[ray.ObjectRef[Any], tuple[_PooledWorker, Chunk | None]] = {}
        self._chunks: Iterator[Chunk] = iter(())
        # What members died with: each is handed out alone.
        self._returned: deque[Chunk] = deque()
        self._crashes: Counter[Chunk] = Counter()
        self._given_up: list[Outcome] = []
        self._failed_starts = 0

    def label(self, chunks: Iterator[Chunk]) -> Generator[list[Outcome]]:
        """The rows of all chunks as they come, a list for each chunk or part of one; an empty list where none
        has come for a few seconds.

        A worker that its GPU or its machine has no memory for leaves its chunks to the others. Raises what
        starting a worker raises, and RunError where no worker is left or workers keep dying before they have
        started.
        """
        first = list(islice(chunks, self._size))
        self._chunks = chain(first, chunks)
        try:
            for _ in first:
                self._begin()
            while self._asked:
                answered = self._answered()
                if not answered:
                    yield []
                for answer in answered:
                    # The death of a worker takes back all that it was asked.
                    if answer in self._asked:
                        yield from self._take(answer)
        finally:
            for member in self._members:
                ray.kill(member.actor)

    def _answered(self) -> list[ray.ObjectRef[Any]]:
        """Waits for an answer and returns all that are there: a wait takes time for every worker."""
        asked = list(self._asked)
        ray.wait(asked, timeout=_HEARTBEAT_S)
        answered: list[ray.ObjectRef[Any]]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=0)
        return answered

    def _take(self, answer: ray.ObjectRef[Any]) -> Iterator[list[Outcome]]:
        member, chunk = self._asked.pop(answer)
        try:
            rows = ray.get(answer)
        except RayActorError as error:
            self._replace(member, error)
            yield from ([row] for row in self._given_up)
            self._given_up.clear()
            return
        except (DeviceMemoryError, OutOfMemoryError) as error:
            self._drop(member, error)
            return
        if chunk is None:
            member.has_started, self._failed_starts = True, 0
        else:
            member.chunks.remove(chunk)
            member.is_alone = False
            yield rows
        self._fill(member)

    def _begin(self) -> None:
        member = _PooledWorker(actor=self._make_actor())
        self._members.append(member)
        self._asked[member.actor.start.remote()] = (member, None)

    def _fill(self, member: _PooledWorker) -> None:
        """Hand a member what it has room for."""
        if self._returned and not member.chunks:
            member.is_alone = True
            self._submit(member, self._returned.popleft())
        while len(member.chunks) < MAX_IN_FLIGHT and not member.is_alone:
            chunk = next(self._chunks, None)
            if chunk is None:
                return
            self._submit(member, chunk)

    def _submit(self, member: _PooledWorker, chunk: Chunk) -> None:
        member.chunks.append(chunk)
        self._asked[member.actor.label.remote(chunk)] = (member, chunk)

    def _drop(self, member: _PooledWorker, error: DeviceMemoryError | OutOfMemoryError) -> None:
        self._remove(member)
        if not self._members:
            where = "the GPU's memory" if isinstance(error, DeviceMemoryError) else "memory"
            reason = getattr(error, "cause", error)  # without the traceback that it has from the worker
            raise RunError(
                f"not even one worker has room in {where}: give a smaller --encoder.batch-size ({reason})"
            ) from error
        self._returned.extend(member.chunks)
        self._feed_all()

    def _remove(self, member: _PooledWorker) -> None:
        self._members.remove(member)
        self._asked = {answer: asked for answer, asked in self._asked.items() if asked[0] is not member}
        ray.kill(member.actor)  # one that is only out of reach must not work on

    def _replace(self, member: _PooledWorker, error: RayActorError) -> None:
        self._remove(member)
        if not member.has_started and not error.preempted:
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                raise RunError(f"{self._failed_starts} workers in a row died while they started: {error}")
        for chunk in member.chunks:
            self._requeue(chunk, is_death=not error.preempted)
        self._begin()
        self._feed_all()

    def _feed_all(self) -> None:
        for member in self._members:
            if member.has_started:
                self._fill(member)

    def _requeue(self, chunk: Chunk, is_death: bool) -> None:
        self._crashes[chunk] += is_death
        deaths = self._crashes[chunk]
        if len(chunk.records) > 1 and deaths >= _DEATHS_OF_A_CHUNK:
            parts = [Chunk(shard=chunk.shard, records=(record,)) for record in chunk.records]
            self._crashes.update(parts)
            self._returned.extend(parts)
        elif deaths >= _DEATHS_OF_AN_IMAGE:
            (record,) = chunk.records
            detail = f"{deaths} workers died while they had this image"
            self._given_up.append(rejected_outcome(record, Reason.FAILED, detail))
        else:
            self._returned.append(chunk)
