"""The pool on a fake Ray, whose actors die when the test says so."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError

from actors.ledger import MAX_IN_FLIGHT
from actors.pool import WorkerPool, size_pool
from engine.errors import ConfigurationError, DeviceMemoryError, RunError, WeightsError
from engine.types import Chunk, ImageRecord, Outcome, Reason, ShardPlan, Status

Records = tuple[ImageRecord, ...]


@dataclass(eq=False)
class FakeRay:
    """Actors that answer in random order.

    `error_of(records)` is the error of a call of `label`, or of `start` if there are no records. Actors for
    which `never_starts` is true do not answer.
    """

    rng: random.Random = field(default_factory=lambda: random.Random(0))
    error_of: Callable[[Records], Exception | None] = lambda records: None
    never_starts: Callable[["FakeActor"], bool] = lambda actor: False
    actors: list["FakeActor"] = field(default_factory=list)
    killed: set["FakeActor"] = field(default_factory=set)

    def make_actor(self) -> "FakeActor":
        self.actors.append(FakeActor(number=len(self.actors)))
        return self.actors[-1]

    def wait(
        self, refs: list["FakeRef"], *, num_returns: int, timeout: float
    ) -> tuple[list["FakeRef"], list["FakeRef"]]:
        """Some actors answer their first call; sometimes none does before the timeout."""
        first_of = {ref.actor: ref for ref in reversed(refs) if not self.never_starts(ref.actor)}
        assert first_of, "this wait would never end"
        if timeout == 0 and self.rng.random() < 0.1:
            return [], refs
        ready = self.rng.sample(list(first_of.values()), self.rng.randint(1, len(first_of)))[:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref: "FakeRef") -> list[Outcome] | None:
        assert ref.actor not in self.killed
        ref.actor.error = ref.actor.error or self.error_of(ref.records)
        if ref.actor.error is not None:
            raise ref.actor.error
        ref.actor.num_calls -= 1
        return [Outcome(record=record, status=Status.LABELLED) for record in ref.records] or None

    def kill(self, actor: "FakeActor") -> None:
        self.killed.add(actor)


@dataclass(eq=False)
class FakeActor:
    number: int
    error: Exception | None = None
    num_calls: int = 0

    @property
    def start(self) -> Any:
        return _Method(lambda: self._call(()))

    @property
    def label(self) -> Any:
        return _Method(lambda chunk: self._call(chunk.records))

    def _call(self, records: Records) -> "FakeRef":
        self.num_calls += 1
        assert self.num_calls <= MAX_IN_FLIGHT
        return FakeRef(self, records)


@dataclass
class _Method:
    remote: Callable[..., "FakeRef"]


@dataclass(eq=False)
class FakeRef:
    actor: FakeActor
    records: Records


def make_chunks(num_images: int, chunk_size: int) -> Iterator[Chunk]:
    records = tuple(ImageRecord(image_id=str(i), path=str(i)) for i in range(num_images))
    return ShardPlan(index=0, records=records, is_last=True).chunks(chunk_size)


def label(fake: FakeRay, chunks: Iterator[Chunk], size: int) -> list[Outcome]:
    rows = [row for part in WorkerPool(fake.make_actor, size, fake).label(chunks) for row in part]
    assert set(fake.actors) == fake.killed
    return rows


@given(
    num_images=st.integers(0, 20),
    chunk_size=st.integers(1, 5),
    size=st.integers(1, 4),
    poison=st.frozensets(st.integers(0, 19), max_size=3),
    preempted_share=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 1000),
)
def test_every_image_gets_one_row_whoever_dies(
    num_images: int, chunk_size: int, size: int, poison: frozenset[int], preempted_share: float, seed: int
) -> None:
    rng = random.Random(seed)

    def error_of(records: Records) -> Exception | None:
        if any(int(record.image_id) in poison for record in records):
            return ActorDiedError()
        return RayActorError(preempted=True) if rng.random() < preempted_share else None

    rows = label(FakeRay(rng, error_of), make_chunks(num_images, chunk_size), size)
    assert sorted(int(row.record.image_id) for row in rows) == list(range(num_images))
    given_up = [row for row in rows if row.status is Status.REJECTED]
    assert {int(row.record.image_id) for row in given_up} == poison & set(range(num_images))
    assert {(row.reason, row.detail) for row in given_up} <= {
        (Reason.FAILED, "3 workers died while they had this image")
    }


@given(
    num_images=st.integers(0, 20),
    chunk_size=st.integers(1, 5),
    size=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_workers_without_memory_leave_their_chunks_to_the_others(
    num_images: int, chunk_size: int, size: int, seed: int
) -> None:
    rng = random.Random(seed)
    num_workers = min(size, -(-num_images // chunk_size))
    kinds = [DeviceMemoryError("CUDA out of memory"), OutOfMemoryError("the node runs low on memory")]
    errors = [rng.choice(kinds) for _ in range(num_workers - 1)]

    def error_of(_: Records) -> Exception | None:
        return errors.pop() if errors and rng.random() < 0.3 else None

    fake = FakeRay(rng, error_of)
    rows = label(fake, make_chunks(num_images, chunk_size), size)
    assert sorted(int(row.record.image_id) for row in rows) == list(range(num_images))
    assert {row.status for row in rows} <= {Status.LABELLED}
    assert len(fake.actors) == num_workers


@pytest.mark.parametrize("num_stuck", [1, 2])
def test_a_run_ends_without_the_workers_that_never_started(num_stuck: int) -> None:
    # The first worker that gets a chunk is preempted, and there is no room for its replacement.
    deaths = iter([RayActorError(preempted=True)])
    fake = FakeRay(
        error_of=lambda records: next(deaths, None) if records else None,
        never_starts=lambda actor: actor.number > 3 - num_stuck,
    )
    rows = label(fake, make_chunks(8, 1), 3)
    assert sorted(row.record.image_id for row in rows) == list("01234567")
    assert len(fake.actors) == 4


def test_a_start_that_fails_after_the_last_row_is_no_error() -> None:
    class LateFailure(FakeRay):
        def wait(
            self, refs: list[FakeRef], *, num_returns: int, timeout: float
        ) -> tuple[list[FakeRef], list[FakeRef]]:
            """Worker 0 answers alone until its last chunk, after which worker 1 answers in the same wait."""
            ready = [ref for ref in refs if ref.actor.number == 0]
            is_last = len(ready) == 1 and ready[0].records
            return (refs[::-1] if is_last else ready), []

        def get(self, ref: FakeRef) -> list[Outcome] | None:
            if ref.actor.number == 1:
                raise WeightsError("no such file")
            return super().get(ref)

    assert len(label(LateFailure(), make_chunks(3, 1), 2)) == 3


def test_without_memory_for_one_worker_the_run_ends() -> None:
    full = FakeRay(error_of=lambda _: DeviceMemoryError("CUDA out of memory"))
    with pytest.raises(RunError, match=r"room in the GPU's memory: lower batch_size \(CUDA out of memory\)"):
        label(full, make_chunks(4, 1), 3)
    assert len(full.actors) == 3
    full = FakeRay(error_of=lambda _: OutOfMemoryError("the node runs low"))
    with pytest.raises(RunError, match=r"room in memory: lower batch_size .*the node runs low"):
        label(full, make_chunks(4, 1), 3)


def test_workers_that_cannot_start_end_the_run() -> None:
    dying = FakeRay(error_of=lambda records: None if records else ActorDiedError())
    with pytest.raises(RunError, match="3 workers in a row died while they started"):
        label(dying, make_chunks(4, 2), 2)
    raising = FakeRay(error_of=lambda records: None if records else WeightsError("no such file"))
    with pytest.raises(WeightsError, match="no such file"):
        label(raising, make_chunks(4, 2), 2)
    assert set(raising.actors) == raising.killed


@given(st.floats(1, 512), st.integers(0, 64))
def test_pools_never_ask_for_more_than_there_is(num_cpus: float, num_gpus: int) -> None:
    size = size_pool(num_cpus, num_gpus)
    assert size.workers * size.cpus_each <= num_cpus
    assert size.workers * size.gpus_each <= num_gpus
    assert min(size.workers, size.cpus_each) > 0


def test_small_and_large_clusters() -> None:
    laptop, node, few_cpus = size_pool(2, 0), size_pool(96, 8), size_pool(12, 8)
    assert (laptop.workers, laptop.gpus_each) == (2, 0)
    assert (node.workers, node.gpus_each) == (64, 0.125)
    assert node.workers * node.cpus_each > 60
    assert (few_cpus.workers, few_cpus.gpus_each) == (8, 1.0)
    with pytest.raises(ConfigurationError, match="at least one"):
        size_pool(0.5, 4)
