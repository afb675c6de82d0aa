"""Decisions about chunks and workers: which worker gets which chunk, and what follows when a worker dies.

Pure Python: events are reported to a `ChunkLedger`, which returns decisions; `actors.pool` carries them out
with Ray. Every image ends in exactly one row, whichever workers die, unless the run ends with an error.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, islice

from engine.types import Chunk, ImageRecord

# Chunks that a worker holds at a time: it reads the second while it computes the first.
MAX_IN_FLIGHT = 2
# A chunk that this many workers crashed on is taken apart into single images.
MAX_CHUNK_CRASHES = 2
# An image that this many workers crashed on is given up; crashes in a larger chunk count as one.
MAX_IMAGE_CRASHES = 3
# The run ends when this many workers in a row crash before they have started.
MAX_FAILED_STARTS = 3


@dataclass(frozen=True)
class StartWorker:
    """Make an actor for this worker and call its `start`."""

    worker: int


@dataclass(frozen=True)
class HandOut:
    """Let a started worker label a chunk."""

    worker: int
    chunk: Chunk


@dataclass(frozen=True)
class StopWorker:
    """Kill a worker and ignore its pending answers; the ledger no longer knows the worker."""

    worker: int


@dataclass(frozen=True)
class GiveUp:
    """Reject an image that this many workers crashed on."""

    record: ImageRecord
    crashes: int


@dataclass(frozen=True)
class EndRun:
    """End the run with an error."""

    reason: str


Decision = StartWorker | HandOut | StopWorker | GiveUp | EndRun


@dataclass
class _WorkerState:
    """What the ledger knows of a worker; `is_alone` while it holds a requeued chunk and gets no other."""

    has_started: bool = False
    is_alone: bool = False
    chunks: list[Chunk] = field(default_factory=list)


class ChunkLedger:
    """The chunks of a run and the workers that hold them.

    Each method reports an event and returns the decisions to carry out, in order. Workers are numbered from
    0; a replacement gets a new number. Nothing may be reported about a worker after its `StopWorker`, and
    nothing at all after `EndRun`.
    """

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        """`chunks` may end for now and have more after the rows of a chunk were handled."""
        self._source = chunks
        # Taken from the source to see whether there are any, and not yet handed out.
        self._upcoming: deque[Chunk] = deque()
        # Held by workers that died. Any of them may be the cause, so each is handed out alone.
        self._requeued: deque[Chunk] = deque()
        self._crashes: Counter[Chunk] = Counter()
        self._workers: dict[int, _WorkerState] = {}
        self._numbers = count()
        self._failed_starts = 0

    def is_finished(self) -> bool:
        """Whether no chunk is held by a worker, requeued, or left to hand out.

        Workers that have not started by then are no longer needed. If no worker holds a chunk, this takes the
        next one from the source, which may have to wait for it.
        """
        if self._requeued or any(state.chunks for state in self._workers.values()):
            return False
        self._look_ahead(1)
        return not self._upcoming

    def begin(self, size: int) -> list[Decision]:
        """Start a worker for every chunk, up to `size` of them."""
        self._look_ahead(size)
        return [self._start_worker() for _ in range(min(size, len(self._upcoming)))]

    def worker_started(self, worker: int) -> list[Decision]:
        """The worker is ready: hand out its first chunks."""
        self._workers[worker].has_started = True
        self._failed_starts = 0
        return self._fill(worker)

    def source_refilled(self) -> list[Decision]:
        """The source may have chunks again after its end: hand them out, by a new worker if there is none."""
        if self.is_finished():
            return []
        return self._fill_idle() if self._workers else [self._start_worker()]

    def chunk_done(self, worker: int, chunk: Chunk) -> list[Decision]:
        """The rows of a chunk have come: hand out the next."""
        state = self._workers[worker]
        state.chunks.remove(chunk)
        state.is_alone = False
        return self._fill(worker)

    def worker_died(self, worker: int, *, preempted: bool, error: str) -> list[Decision]:
        """The worker's process ended: requeue its chunks and replace it.

        A worker that was `preempted` (its machine was taken away) does not count against its chunks, nor as a
        failed start. `error` is quoted if the run ends.
        """
        state = self._workers.pop(worker)
        decisions: list[Decision] = [StopWorker(worker)]
        if not state.has_started and not preempted:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                reason = f"{self._failed_starts} workers in a row died while they started: {error}"
                return [*decisions, EndRun(reason)]
        for chunk in state.chunks:
            decisions += self._requeue(chunk, has_crashed=not preempted)
        if not self.is_finished():
            decisions.append(self._start_worker())
        return decisions + self._fill_idle()

    def worker_out_of_memory(self, worker: int, *, memory: str, error: str) -> list[Decision]:
        """The worker has no room in `memory`: drop it and leave its chunks to the others.

        Ends the run if there are no others.
        """
        state = self._workers.pop(worker)
        if not self._workers:
            reason = f"not even one worker has room in {memory}: lower batch_size ({error})"
            return [StopWorker(worker), EndRun(reason)]
        self._requeued.extend(state.chunks)
        return [StopWorker(worker), *self._fill_idle()]

    def _start_worker(self) -> StartWorker:
        worker = next(self._numbers)
        self._workers[worker] = _WorkerState()
        return StartWorker(worker)

    def _fill_idle(self) -> list[Decision]:
        started = [worker for worker, state in self._workers.items() if state.has_started]
        return [decision for worker in started for decision in self._fill(worker)]

    def _fill(self, worker: int) -> list[Decision]:
        """Hand a started worker as many chunks as it has room for."""
        state = self._workers[worker]
        if self._requeued and not state.chunks:
            state.is_alone = True
            state.chunks.append(self._requeued.popleft())
            return [HandOut(worker, state.chunks[0])]
        if state.is_alone:
            return []
        room = MAX_IN_FLIGHT - len(state.chunks)
        self._look_ahead(room)
        handed_out = [self._upcoming.popleft() for _ in range(min(room, len(self._upcoming)))]
        state.chunks += handed_out
        return [HandOut(worker, chunk) for chunk in handed_out]

    def _look_ahead(self, num_chunks: int) -> None:
        """Take chunks from the source until `num_chunks` are upcoming, or it ends."""
        self._upcoming.extend(islice(self._source, max(num_chunks - len(self._upcoming), 0)))

    def _requeue(self, chunk: Chunk, has_crashed: bool) -> list[Decision]:
        self._crashes[chunk] += has_crashed
        crashes = self._crashes[chunk]
        if len(chunk.records) > 1 and crashes >= MAX_CHUNK_CRASHES:
            singles = [Chunk(shard=chunk.shard, records=(record,)) for record in chunk.records]
            self._crashes.update(singles)
            self._requeued.extend(singles)
        elif crashes >= MAX_IMAGE_CRASHES:
            (record,) = chunk.records
            return [GiveUp(record, crashes)]
        else:
            self._requeued.append(chunk)
        return []
