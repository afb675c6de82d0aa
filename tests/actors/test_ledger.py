"""The ledger under every order of events: whichever workers die, each image gets exactly one row."""

from collections import Counter
from collections.abc import Iterator

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.ledger import (
    MAX_FAILED_STARTS,
    MAX_IMAGE_CRASHES,
    MAX_IN_FLIGHT,
    ChunkLedger,
    Decision,
    EndRun,
    GiveUp,
    HandOut,
    StartWorker,
    StopWorker,
)
from engine.types import Chunk, ImageRecord, ShardPlan


def make_chunks(num_images: int, chunk_size: int) -> list[Chunk]:
    records = tuple(ImageRecord(image_id=str(i), path=str(i)) for i in range(num_images))
    return list(ShardPlan(index=0, records=records, is_last=True).chunks(chunk_size))


class LedgerMachine(RuleBasedStateMachine):
    """Carries decisions out on workers that answer, crash and run out of memory in any order."""

    @initialize(num_images=st.integers(0, 8), chunk_size=st.integers(1, 3), size=st.integers(1, 4))
    def begin(self, num_images: int, chunk_size: int, size: int) -> None:
        chunks = make_chunks(num_images, chunk_size)
        self.images = {record for chunk in chunks for record in chunk.records}
        self.rows: Counter[ImageRecord] = Counter()
        self.crashes: Counter[ImageRecord] = Counter()
        self.starting: set[int] = set()
        self.held: dict[int, list[Chunk]] = {}
        self.failed_starts = 0
        self.error = ""
        self.ledger = ChunkLedger(iter(chunks))
        self.carry_out(self.ledger.begin(size))
        assert len(self.starting) == min(size, len(chunks))

    def carry_out(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            assert not self.error
            match decision:
                case StartWorker(worker):
                    assert worker not in self.starting | self.held.keys()
                    self.starting.add(worker)
                case HandOut(worker, chunk):
                    self.held[worker].append(chunk)
                case StopWorker(worker):
                    self.starting.discard(worker)
                    self.held.pop(worker, None)
                case GiveUp(record, crashes):
                    assert crashes == MAX_IMAGE_CRASHES <= self.crashes[record]
                    self.rows[record] += 1
                case EndRun(reason):
                    self.error = reason

    def is_running(self) -> bool:
        return not self.error and not self.ledger.is_finished()

    def any_worker(self, draw: st.DataObject) -> int:
        return draw.draw(st.sampled_from(sorted(self.starting | self.held.keys())))

    def begin_worker(self, worker: int) -> None:
        self.starting.remove(worker)
        self.held[worker] = []
        self.failed_starts = 0
        self.carry_out(self.ledger.worker_started(worker))

    def finish(self, worker: int, chunk: Chunk) -> None:
        self.held[worker].remove(chunk)
        self.rows.update(chunk.records)
        self.carry_out(self.ledger.chunk_done(worker, chunk))

    @precondition(lambda self: self.is_running() and self.starting)
    @rule(draw=st.data())
    def start(self, draw: st.DataObject) -> None:
        self.begin_worker(draw.draw(st.sampled_from(sorted(self.starting))))

    @precondition(lambda self: self.is_running() and any(self.held.values()))
    @rule(draw=st.data())
    def finish_a_chunk(self, draw: st.DataObject) -> None:
        worker = draw.draw(st.sampled_from([worker for worker, chunks in self.held.items() if chunks]))
        self.finish(worker, draw.draw(st.sampled_from(self.held[worker])))

    @precondition(lambda self: self.is_running())
    @rule(draw=st.data(), preempted=st.booleans())
    def die(self, draw: st.DataObject, preempted: bool) -> None:
        worker = self.any_worker(draw)
        if not preempted:
            self.crashes.update(record for chunk in self.held.get(worker, ()) for record in chunk.records)
            self.failed_starts += worker in self.starting
        self.carry_out(self.ledger.worker_died(worker, preempted=preempted, error="killed"))
        assert bool(self.error) == (self.failed_starts == MAX_FAILED_STARTS)

    @precondition(lambda self: self.is_running())
    @rule(draw=st.data())
    def run_out_of_memory(self, draw: st.DataObject) -> None:
        num_workers = len(self.starting) + len(self.held)
        self.carry_out(self.ledger.worker_out_of_memory(self.any_worker(draw), memory="memory", error="full"))
        assert len(self.starting) + len(self.held) == num_workers - 1
        assert bool(self.error) == (num_workers == 1)

    @invariant()
    def no_worker_holds_too_much(self) -> None:
        assert all(len(chunks) <= MAX_IN_FLIGHT for chunks in self.held.values())

    @invariant()
    def no_image_is_in_two_places(self) -> None:
        held = (record for chunks in self.held.values() for chunk in chunks for record in chunk.records)
        assert max((self.rows + Counter(held)).values(), default=1) == 1

    @invariant()
    def a_run_that_goes_on_waits_for_a_worker(self) -> None:
        assert not self.is_running() or self.starting or any(self.held.values())

    @precondition(lambda self: not self.is_running())
    @rule()
    def end(self) -> None:
        assert self.error or self.rows == Counter(self.images)

    def teardown(self) -> None:
        """From wherever the events have led, a run without further faults gives every image its row."""
        while self.is_running():
            for worker in sorted(self.starting):
                self.begin_worker(worker)
            for worker in list(self.held):
                for chunk in list(self.held[worker]):
                    self.finish(worker, chunk)
        assert self.error or self.rows == Counter(self.images)


LedgerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
TestLedger = LedgerMachine.TestCase


def begun(num_images: int, chunk_size: int, num_workers: int) -> tuple[ChunkLedger, list[Chunk]]:
    """A ledger whose workers have started, and the chunks in the order that it hands them out."""
    chunks = make_chunks(num_images, chunk_size)
    ledger = ChunkLedger(iter(chunks))
    assert ledger.begin(num_workers) == [StartWorker(worker) for worker in range(num_workers)]
    for worker in range(num_workers):
        ledger.worker_started(worker)
    return ledger, chunks


def test_a_worker_gets_two_chunks_and_then_one_for_each_that_is_done() -> None:
    a, b, c = make_chunks(5, 2)
    ledger = ChunkLedger(iter([a, b, c]))
    assert ledger.begin(1) == [StartWorker(0)]
    assert ledger.worker_started(0) == [HandOut(0, a), HandOut(0, b)]
    assert ledger.chunk_done(0, b) == [HandOut(0, c)]
    assert ledger.chunk_done(0, a) == []
    assert not ledger.is_finished()
    assert ledger.chunk_done(0, c) == []
    assert ledger.is_finished()


def test_no_images_need_no_workers() -> None:
    ledger = ChunkLedger(iter([]))
    assert ledger.begin(64) == []
    assert ledger.is_finished()


def test_no_more_workers_than_chunks() -> None:
    assert ChunkLedger(iter(make_chunks(5, 2))).begin(64) == [StartWorker(0), StartWorker(1), StartWorker(2)]


def test_an_image_that_kills_its_workers_is_given_up_alone() -> None:
    ledger, (pair,) = begun(2, 2, 1)
    good, bad = (Chunk(shard=0, records=(record,)) for record in pair.records)
    assert ledger.worker_died(0, preempted=False, error="") == [StopWorker(0), StartWorker(1)]
    assert ledger.worker_started(1) == [HandOut(1, pair)]
    assert ledger.worker_died(1, preempted=False, error="") == [StopWorker(1), StartWorker(2)]
    assert ledger.worker_started(2) == [HandOut(2, good)]
    assert ledger.chunk_done(2, good) == [HandOut(2, bad)]
    assert ledger.worker_died(2, preempted=False, error="") == [StopWorker(2), StartWorker(3)]
    assert ledger.worker_started(3) == [HandOut(3, bad)]
    assert ledger.worker_died(3, preempted=False, error="") == [StopWorker(3), GiveUp(bad.records[0], 3)]
    assert ledger.is_finished()


def test_preempted_workers_count_against_nobody() -> None:
    ledger, (chunk,) = begun(1, 1, 1)
    for worker in range(0, 20, 2):
        assert ledger.worker_died(worker, preempted=True, error="") == [
            StopWorker(worker), StartWorker(worker + 1),
        ]  # fmt: skip
        assert ledger.worker_died(worker + 1, preempted=True, error="") == [
            StopWorker(worker + 1), StartWorker(worker + 2),
        ]  # fmt: skip
        assert ledger.worker_started(worker + 2) == [HandOut(worker + 2, chunk)]


def test_an_idle_worker_takes_over_and_the_replacement_is_not_waited_for() -> None:
    first, second, third = make_chunks(3, 1)
    ledger = ChunkLedger(iter([first, second, third]))
    ledger.begin(2)
    assert ledger.worker_started(0) == [HandOut(0, first), HandOut(0, second)]
    assert ledger.worker_started(1) == [HandOut(1, third)]
    assert ledger.chunk_done(0, first) == ledger.chunk_done(0, second) == []
    assert ledger.worker_died(1, preempted=True, error="") == [
        StopWorker(1), StartWorker(2), HandOut(0, third),
    ]  # fmt: skip
    assert ledger.chunk_done(0, third) == []
    assert ledger.is_finished()  # though worker 2 has not started


def test_a_worker_that_dies_when_all_is_done_is_not_replaced() -> None:
    ledger, (chunk,) = begun(1, 1, 1)
    ledger.chunk_done(0, chunk)
    assert ledger.worker_died(0, preempted=False, error="") == [StopWorker(0)]


def test_workers_that_cannot_start_end_the_run() -> None:
    ledger = ChunkLedger(iter(make_chunks(4, 1)))
    ledger.begin(2)
    ledger.worker_died(0, preempted=False, error="")
    ledger.worker_started(1)
    for worker in (2, 3):
        ledger.worker_died(worker, preempted=False, error="")
    assert ledger.worker_died(4, preempted=False, error="no such library") == [
        StopWorker(4), EndRun("3 workers in a row died while they started: no such library"),
    ]  # fmt: skip


def test_a_worker_without_memory_leaves_its_chunks_to_the_others_one_at_a_time() -> None:
    ledger, (a, b, c, d) = begun(4, 1, 2)
    ledger.chunk_done(0, a)
    assert ledger.worker_out_of_memory(1, memory="memory", error="") == [StopWorker(1)]
    assert ledger.chunk_done(0, b) == [HandOut(0, c)]
    assert ledger.chunk_done(0, c) == [HandOut(0, d)]
    assert ledger.worker_out_of_memory(0, memory="the GPU's memory", error="CUDA out of memory") == [
        StopWorker(0),
        EndRun("not even one worker has room in the GPU's memory: lower batch_size (CUDA out of memory)"),
    ]


def test_no_chunk_is_taken_from_the_source_before_a_worker_can_have_it() -> None:
    taken: list[Chunk] = []
    chunks = make_chunks(9, 1)

    def source() -> Iterator[Chunk]:
        for chunk in chunks:
            taken.append(chunk)
            yield chunk

    ledger = ChunkLedger(source())
    ledger.begin(2)
    assert taken == chunks[:2]
    ledger.worker_started(0)
    assert not ledger.is_finished()
    assert taken == chunks[:2]
    ledger.worker_started(1)
    assert taken == chunks[:4]


def test_a_source_that_has_more_after_its_end_is_asked_again() -> None:
    class Refilled:
        """An iterator that ends whenever `left` is empty."""

        def __init__(self, left: list[Chunk]) -> None:
            self.left = left

        def __iter__(self) -> "Refilled":
            return self

        def __next__(self) -> Chunk:
            if not self.left:
                raise StopIteration
            return self.left.pop(0)

    first, second, third = make_chunks(3, 1)
    source = Refilled([first])
    ledger = ChunkLedger(source)
    assert ledger.begin(2) == [StartWorker(0)]
    assert ledger.worker_started(0) == [HandOut(0, first)]
    assert ledger.source_refilled() == []
    source.left.append(second)
    assert ledger.chunk_done(0, first) == [HandOut(0, second)]
    assert ledger.chunk_done(0, second) == []
    assert ledger.is_finished()
    source.left.append(third)
    assert ledger.source_refilled() == [HandOut(0, third)]
    assert ledger.worker_out_of_memory(0, memory="memory", error="")[0] == StopWorker(0)
