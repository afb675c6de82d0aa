"""The pool on a Ray that is played here, so that deaths come when the test says."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError

from actors import pool
from actors.pool import MAX_IN_FLIGHT, WorkerPool
from engine.errors import DeviceMemoryError, RunError, WeightsError
from engine.types import Chunk, ImageRecord, Outcome, Reason, ShardPlan, Status


@dataclass(eq=False)
class PlayedRay:
    """Actors that answer in an order drawn at random, and die at what `dies_at` says of a chunk's records, or
    of an empty tuple where they start."""

    rng: random.Random
    dies_at: Callable[[tuple[ImageRecord, ...]], Exception | None]
    actors: list["PlayedActor"] = field(default_factory=list)
    killed: set["PlayedActor"] = field(default_factory=set)

    def make_actor(self) -> "PlayedActor":
        self.actors.append(PlayedActor(self))
        return self.actors[-1]

    def wait(
        self, answers: list["Answer"], num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list["Answer"], list["Answer"]]:
        if timeout == 0 and self.rng.random() < 0.1:
            return [], answers  # it was patience that ended the wait before
        # Some workers have answered what they were asked first, in any order.
        first_of = {id(answer.actor): answer for answer in reversed(answers)}
        ready = self.rng.sample(list(first_of.values()), self.rng.randint(1, len(first_of)))[:num_returns]
        return ready, [answer for answer in answers if answer not in ready]

    def get(self, answer: "Answer") -> list[Outcome] | None:
        actor = answer.actor
        assert actor not in self.killed
        actor.death = actor.death or self.dies_at(answer.records)
        if actor.death is not None:
            raise actor.death
        actor.in_hand -= 1
        return [Outcome(record=record, status=Status.LABELLED) for record in answer.records] or None

    def kill(self, actor: "PlayedActor") -> None:
        self.killed.add(actor)


@dataclass(eq=False)
class Answer:
    actor: "PlayedActor"
    records: tuple[ImageRecord, ...]


@dataclass(eq=False)
class PlayedActor:
    ray: PlayedRay
    death: Exception | None = None
    in_hand: int = 0

    @property
    def start(self) -> Any:
        return _Method(lambda: self._ask(()))

    @property
    def label(self) -> Any:
        return _Method(lambda chunk: self._ask(chunk.records))

    def _ask(self, records: tuple[ImageRecord, ...]) -> Answer:
        self.in_hand += 1
        assert self.in_hand <= MAX_IN_FLIGHT
        return Answer(self, records)


@dataclass
class _Method:
    remote: Callable[..., Answer]


def make_chunks(num_images: int, chunk_size: int) -> Iterator[Chunk]:
    records = tuple(ImageRecord(image_id=str(i), path=str(i)) for i in range(num_images))
    return ShardPlan(index=0, records=records, is_last=True).chunks(chunk_size)


def label(played: PlayedRay, chunks: Iterator[Chunk], size: int) -> list[Outcome]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "ray", played)
        rows = [row for part in WorkerPool(played.make_actor, size).label(chunks) for row in part]
    assert set(played.actors) == played.killed
    return rows


@given(
    st.integers(0, 30),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sets(st.integers(0, 29), max_size=3),
    st.floats(0, 0.1),
    st.randoms(use_true_random=False),
)
def test_every_image_gets_one_row_whoever_dies(
    num_images: int, chunk_size: int, size: int, poison: set[int], bad_luck: float, rng: random.Random
) -> None:
    def dies_at(records: tuple[ImageRecord, ...]) -> Exception | None:
        if any(int(record.image_id) in poison for record in records):
            return ActorDiedError()
        return RayActorError(preempted=True) if rng.random() < bad_luck else None

    rows = label(PlayedRay(rng, dies_at), make_chunks(num_images, chunk_size), size)
    assert sorted(int(row.record.image_id) for row in rows) == list(range(num_images))
    given_up = [row for row in rows if row.status is Status.REJECTED]
    assert {int(row.record.image_id) for row in given_up} == poison & set(range(num_images))
    assert {row.reason for row in given_up} <= {Reason.FAILED}


def test_no_more_workers_than_chunks() -> None:
    played = PlayedRay(random.Random(0), lambda _: None)
    assert len(label(played, make_chunks(5, 2), 64)) == 5
    assert len(played.actors) == 3


def test_a_machine_that_is_taken_away_is_nobodys_fault() -> None:
    preemptions = iter([RayActorError(preempted=True)] * 20)
    rows = label(PlayedRay(random.Random(0), lambda _: next(preemptions, None)), make_chunks(4, 2), 2)
    assert [row.status for row in rows] == [Status.LABELLED] * 4
    assert next(preemptions, None) is None


@given(st.integers(0, 30), st.integers(1, 5), st.integers(1, 5), st.randoms(use_true_random=False))
def test_workers_without_room_leave_their_chunks_to_the_others(
    num_images: int, chunk_size: int, size: int, rng: random.Random
) -> None:
    num_workers = min(size, -(-num_images // chunk_size))
    kinds = [DeviceMemoryError("CUDA out of memory"), OutOfMemoryError("the node runs low on memory")]
    errors = [rng.choice(kinds) for _ in range(num_workers - 1)]

    def dies_at(_: tuple[ImageRecord, ...]) -> Exception | None:
        return errors.pop() if errors and rng.random() < 0.3 else None

    played = PlayedRay(rng, dies_at)
    rows = label(played, make_chunks(num_images, chunk_size), size)
    assert sorted(int(row.record.image_id) for row in rows) == list(range(num_images))
    assert {row.status for row in rows} <= {Status.LABELLED}
    assert len(played.actors) == num_workers


def test_without_room_for_one_worker_the_run_ends() -> None:
    full = PlayedRay(random.Random(0), lambda _: DeviceMemoryError("CUDA out of memory"))
    with pytest.raises(RunError, match=r"the GPU's memory.* --encoder\.batch-size \(CUDA out of memory\)"):
        label(full, make_chunks(4, 1), 3)
    assert len(full.actors) == 3
    full = PlayedRay(random.Random(0), lambda _: OutOfMemoryError("the node runs low"))
    with pytest.raises(RunError, match=r"room in memory.* --encoder\.batch-size .*the node runs low"):
        label(full, make_chunks(4, 1), 3)


def test_workers_that_cannot_start_end_the_run() -> None:
    dying = PlayedRay(random.Random(0), lambda records: None if records else ActorDiedError())
    with pytest.raises(RunError, match="3 workers in a row died while they started"):
        label(dying, make_chunks(4, 2), 2)
    raising = PlayedRay(random.Random(0), lambda records: None if records else WeightsError("no such file"))
    with pytest.raises(WeightsError, match="no such file"):
        label(raising, make_chunks(4, 2), 2)
    assert set(raising.actors) == raising.killed
