"""The stages without Ray: plain classes that are given batches."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actors import reader, workers
from actors.reader import ChunkResult, Reader, cell
from actors.workers import EncoderWorker, Labeller
from engine.corpora import FolderCorpus
from engine.encoders import EncoderConfig
from engine.errors import TransientError
from engine.labelling import LabellingConfig
from engine.store.objects import MemoryObjects
from engine.types import Chunk, Outcome, Reason, Status

CONFIG = LabellingConfig(refine="none", encoder=EncoderConfig(image_size=96, batch_size=2))
SIZE = (96, 96)


class FlakyObjects(MemoryObjects):
    """Fails to answer the first `failures` reads."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    def read(self, key: str) -> bytes:
        if self.failures > 0:
            self.failures -= 1
            raise TransientError("no answer")
        return super().read(key)


@pytest.fixture
def corpus(photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]) -> FolderCorpus:
    objects = MemoryObjects()
    for seed in range(4):
        objects.write(f"{seed}.png", encode_image(photograph(seed), "PNG"))
    objects.write("2.png", b"broken")
    return FolderCorpus(objects)


def run_stages(
    corpus: FolderCorpus, config: LabellingConfig = CONFIG, chunk_size: int = 5
) -> tuple[Outcome, ...]:
    records = tuple(corpus.records())
    batch: dict[str, Any] = {"chunk": cell(Chunk(shard=7, index=1, count=3, records=records))}
    for stage in (
        Reader(corpus, config.decoding, SIZE, chunk_size),
        EncoderWorker(config, "cpu", 1),
        Labeller(config),
    ):
        batch = stage(batch)
    result: ChunkResult = batch["result"][0]
    assert (result.chunk.shard, result.chunk.index) == (7, 1)
    assert [outcome.record for outcome in result.outcomes] == list(records)
    return result.outcomes


def test_every_image_of_a_chunk_becomes_a_row(corpus: FolderCorpus) -> None:
    outcomes = run_stages(corpus)
    assert [outcome.reason for outcome in outcomes][2] == Reason.NOT_AN_IMAGE
    for outcome in (outcomes[0], outcomes[1], outcomes[3]):
        assert outcome.status in (Status.LABELLED, Status.NO_OBJECT)
        assert (outcome.height, outcome.width) == (48, 64)


def test_rows_of_multicut_carry_objective_and_gap(corpus: FolderCorpus) -> None:
    outcomes = run_stages(corpus, replace(CONFIG, method="multicut"))
    assert outcomes[2].optimality is None
    for outcome in (outcomes[0], outcomes[1], outcomes[3]):
        assert outcome.optimality is not None
        assert outcome.optimality.objective <= 0 <= outcome.optimality.gap <= 1


def test_an_images_row_does_not_depend_on_its_neighbours(corpus: FolderCorpus) -> None:
    together = run_stages(corpus)
    lone = FolderCorpus(corpus._objects, ("3.png",))
    (alone,) = run_stages(lone, chunk_size=1)
    assert alone.instances is not None
    assert together[3].instances is not None
    assert alone.instances.rles == together[3].instances.rles
    assert alone.instances.scores.tobytes() == together[3].instances.scores.tobytes()


def test_a_server_that_stumbles_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(reader.time, "sleep", waits.append)
    objects = FlakyObjects(failures=2)
    objects.write("a.png", b"")
    (outcome,) = run_stages(FolderCorpus(objects))
    assert outcome.reason == Reason.EMPTY_FILE
    assert waits == list(reader._RETRY_WAITS_S[:2])
    objects.failures = 100
    (outcome,) = run_stages(FolderCorpus(objects))
    assert (outcome.status, outcome.reason) == (Status.REJECTED, Reason.UNREACHABLE)


def test_what_nobody_foresaw_is_a_row_too(corpus: FolderCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("surprise")

    monkeypatch.setattr(workers, "label_features", fail)
    outcomes = run_stages(corpus)
    assert [o.reason for o in outcomes] == [Reason.FAILED, Reason.FAILED, Reason.NOT_AN_IMAGE, Reason.FAILED]
    assert "RuntimeError: surprise" in outcomes[0].detail
    monkeypatch.setattr(reader, "prepare_image", fail)
    assert {outcome.reason for outcome in run_stages(corpus)} == {Reason.FAILED}


def test_a_chunk_without_a_readable_image(corpus: FolderCorpus) -> None:
    (outcome,) = run_stages(FolderCorpus(corpus._objects, ("2.png",)))
    assert outcome.reason == Reason.NOT_AN_IMAGE
