"""The stages without Ray: plain classes that are given batches."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from actors import reader, workers
from actors.pipeline import is_whole_chunk, merge_parts
from actors.reader import ChunkResult, Reader, cell
from actors.workers import EncoderWorker, Labeller
from engine.corpora import Corpus, FolderCorpus
from engine.decoding import decode_image
from engine.encoders import EncoderConfig, load_encoder
from engine.errors import TransientError
from engine.labelling import LabellingConfig, label_images
from engine.preparation import PreparationConfig
from engine.store.objects import MemoryObjects
from engine.tiling import TilingConfig
from engine.types import Chunk, Instances, Outcome, Reason, Status

CONFIG = LabellingConfig(refine="none", encoder=EncoderConfig(image_size=96, batch_size=2))
SIZE = (96, 96)


class FlakyObjects(MemoryObjects):
    """Fails to answer the first `failures` reads."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    def read_range(self, key: str, start: int, size: int) -> bytes:
        if self.failures > 0:
            self.failures -= 1
            raise TransientError("no answer")
        return super().read_range(key, start, size)


@pytest.fixture
def corpus(photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]) -> FolderCorpus:
    objects = MemoryObjects()
    for seed in range(4):
        objects.write(f"{seed}.png", encode_image(photograph(seed), "PNG"))
    objects.write("2.png", b"broken")
    return FolderCorpus(objects)


def run_stages(corpus: Corpus, config: LabellingConfig = CONFIG, chunk_size: int = 5) -> tuple[Outcome, ...]:
    """Every image of the corpus through the stages; each row of each stage is checked to be full."""
    records = tuple(corpus.records())
    chunk = Chunk(shard=7, index=1, count=3, records=records)
    preparation = PreparationConfig(image_size=SIZE, decoding=config.decoding, tiling=config.tiling)
    encode, label = EncoderWorker(config, "cpu", 1), Labeller(config)
    parts: dict[int, ChunkResult] = {}
    for row in Reader(corpus, preparation, chunk_size)({"chunk": cell(chunk)}):
        assert row["images"].shape == (1, chunk_size, *SIZE, 3)
        assert not is_whole_chunk(parts)
        result: ChunkResult = label(encode(row))["result"][0]
        assert result.chunk == chunk
        parts[result.part] = result
    assert is_whole_chunk(parts)
    outcomes = merge_parts(parts, config.tiling)
    assert [outcome.record for outcome in outcomes] == list(records)
    return outcomes


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
    monkeypatch.setattr(reader.DecodingProcess, "crops", fail)
    assert {outcome.reason for outcome in run_stages(corpus)} == {Reason.FAILED}


def test_a_chunk_without_a_readable_image(corpus: FolderCorpus) -> None:
    (outcome,) = run_stages(FolderCorpus(corpus._objects, ("2.png",)))
    assert outcome.reason == Reason.NOT_AN_IMAGE


def test_tiles_of_several_images_share_rows(corpus: FolderCorpus) -> None:
    # A 48 x 64 image has 6 tiles of 32: with the whole that is 7 crops, in rows of 5.
    config = replace(CONFIG, tiling=TilingConfig(tile=32))
    encoder = load_encoder(config.encoder, "cpu", 1)
    rows = run_stages(corpus, config)
    assert rows[2].reason == Reason.NOT_AN_IMAGE
    other_rows = run_stages(corpus, config, chunk_size=3)
    for i in (0, 1, 3):
        image = decode_image(corpus.read(rows[i].record), config.decoding)
        expected = label_images([image], encoder, config)[0].found
        assert isinstance(expected, Instances)
        for found in (rows[i].instances, other_rows[i].instances):
            assert found is not None
            assert found.rles == expected.rles
            assert found.scores.tobytes() == expected.scores.tobytes()
