"""The worker as a plain class, without Ray."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from actors.ledger import MAX_IN_FLIGHT
from actors.reader import Reader
from actors.workers import Worker
from engine.corpora import Corpus, FolderCorpus
from engine.encoders import EncoderConfig, load_encoder
from engine.errors import DeviceMemoryError, TransientError
from engine.images.crops import Crop, PreparationConfig
from engine.images.decoding import decode_image
from engine.images.resizing import resize_image
from engine.images.tiling import TilingConfig
from engine.labelling.config import LabellingConfig, NetworkConfig
from engine.labelling.labeller import Labeller, label_images, load_labeller
from engine.labelling.network_labeller import NetworkLabeller, TrainedNetwork
from engine.labelling.outcomes import Labels
from engine.labelling.patch_labeller import PatchLabeller
from engine.masks.rle import cross_ious
from engine.objects.memory import MemoryObjects
from engine.refine import CrfConfig, refine_images
from engine.solo.config import DetectionConfig, GridConfig, SoloConfig
from engine.solo.inference import find_instances
from engine.solo.network import build_network
from engine.solo.weights import load_network, pack_network
from engine.types import Chunk, ImageRecord, Outcome, Reason, ShardPlan, Status
from tests.fake_cuda import fake_cuda, in_fake_cuda

Load = Callable[[LabellingConfig, str], Labeller]
CONFIG = LabellingConfig(
    method="promerge",
    refine="none",
    encoder=EncoderConfig(image_size=96, batch_size=2, precision="float32"),
)
SIZE = (96, 96)


class FlakyObjects(MemoryObjects):
    """Raises TransientError for the first `failures` reads."""

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


def label(
    corpus: Corpus,
    config: LabellingConfig = CONFIG,
    chunk_size: int = 5,
    device: str = "cpu",
    load: Load = load_labeller,
) -> list[Outcome]:
    """The rows of every image of the corpus, in chunks through one worker, two of them at a time."""
    plan = ShardPlan(index=7, records=tuple(corpus.records()), is_last=True)
    worker = Worker(corpus, config, SIZE, device, load)
    worker.start()
    rows: dict[ImageRecord, Outcome] = {}
    with ThreadPoolExecutor(MAX_IN_FLIGHT) as threads:
        chunks = list(plan.chunks(chunk_size))
        work = in_fake_cuda(worker.label) if device == "cuda" else worker.label
        for chunk, outcomes in zip(chunks, threads.map(work, chunks), strict=True):
            assert {row.record for row in outcomes} == set(chunk.records)
            assert len(outcomes) == len(chunk.records)
            rows.update((row.record, row) for row in outcomes)
    return [rows[record] for record in plan.records]


def test_every_image_of_a_chunk_becomes_a_row(corpus: FolderCorpus) -> None:
    outcomes = label(corpus)
    assert [outcome.reason for outcome in outcomes][2] == Reason.NOT_AN_IMAGE
    for outcome in (outcomes[0], outcomes[1], outcomes[3]):
        assert outcome.status in (Status.LABELLED, Status.NO_OBJECT)
        assert (outcome.height, outcome.width) == (48, 64)


def test_rows_of_multicut_carry_objective_and_gap(corpus: FolderCorpus) -> None:
    outcomes = label(corpus, replace(CONFIG, method="multicut"))
    assert outcomes[2].optimality is None
    for outcome in (outcomes[0], outcomes[1], outcomes[3]):
        assert outcome.optimality is not None
        assert outcome.optimality.objective <= 0 <= outcome.optimality.gap <= 1


def test_torch_refines_masks_like_numba(corpus: FolderCorpus) -> None:
    refining = replace(CONFIG, refine="crf")
    by_numba, by_torch = (
        label(corpus, replace(refining, crf=CrfConfig(backend=backend))) for backend in ("auto", "torch")
    )
    assert sum(outcome.instances is not None for outcome in by_numba) >= 2
    for one, other in zip(by_numba, by_torch, strict=True):
        if one.instances is not None and other.instances is not None:
            ious = np.diag(cross_ious(one.instances.rles, other.instances.rles, one.instances.size))
            assert ious.min() > 0.99
        assert (one.reason, one.instances is None) == (other.reason, other.instances is None)


@pytest.mark.parametrize("method", ["promerge", "multicut", "solo"])
def test_a_worker_on_a_gpu_labels_like_one_on_a_cpu(
    corpus: FolderCorpus, by_network: LabellingConfig, method: Literal["promerge", "multicut", "solo"]
) -> None:
    config = by_network if method == "solo" else replace(CONFIG, method=method)
    config = replace(config, refine="crf", crf=CrfConfig(backend="torch"), tiling=TilingConfig(tile=48))
    expected = label(corpus, config)
    with fake_cuda():
        rows = label(corpus, config, device="cuda")
    assert sum(row.instances is not None for row in rows) >= 2
    for row, other in zip(rows, expected, strict=True):
        assert (row.reason, row.detail) == (other.reason, other.detail)
        if row.instances is not None and other.instances is not None:
            assert row.instances.rles == other.instances.rles


def test_an_images_row_does_not_depend_on_its_neighbours(corpus: FolderCorpus) -> None:
    together = label(corpus)
    lone = FolderCorpus(corpus._objects, ("3.png",))
    (alone,) = label(lone, chunk_size=1)
    assert alone.instances is not None
    assert together[3].instances is not None
    assert alone.instances.rles == together[3].instances.rles
    assert alone.instances.scores.tobytes() == together[3].instances.scores.tobytes()


def test_a_server_that_does_not_answer_is_asked_again() -> None:
    objects = FlakyObjects(failures=2)
    objects.write("a.png", b"")
    corpus = FolderCorpus(objects)
    reader = Reader(corpus, PreparationConfig(image_size=SIZE), retry_waits_s=(0, 0))
    chunk = Chunk(shard=0, records=tuple(corpus.records()))
    (outcome,) = reader.crops(chunk)
    assert isinstance(outcome, Outcome)
    assert (outcome.reason, objects.failures) == (Reason.EMPTY_FILE, 0)
    objects.failures = 3
    (outcome,) = reader.crops(chunk)
    assert isinstance(outcome, Outcome)
    assert (outcome.status, outcome.reason) == (Status.REJECTED, Reason.UNREACHABLE)


class FaultyEncoder:
    """Fails, or gives features without channels, of which no mask can be made."""

    name, feature_size, image_size, grid, weights_digest = "faulty", 0, SIZE, (12, 12), "fixed"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.batches: list[int] = []

    def encode(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        self.batches.append(len(images))
        if self.error is not None:
            raise self.error
        return torch.zeros(len(images), 12, 12, 0)


class BrokenCorpus(FolderCorpus):
    def read(self, record: ImageRecord) -> bytes:
        raise RuntimeError("surprise")


def test_an_unforeseen_error_becomes_a_row_too(corpus: FolderCorpus) -> None:
    rows = label(corpus, load=lambda config, _: PatchLabeller(config, FaultyEncoder()))
    assert [o.reason for o in rows] == [Reason.FAILED, Reason.FAILED, Reason.NOT_AN_IMAGE, Reason.FAILED]
    assert rows[0].detail.startswith("while labelling: ValueError: ")
    unreadable = label(BrokenCorpus(corpus._objects))
    assert {row.reason for row in unreadable} == {Reason.FAILED}
    assert unreadable[0].detail == "while reading: RuntimeError: surprise"


def test_an_image_that_fails_after_some_of_its_crops_is_one_row(corpus: FolderCorpus) -> None:
    worker = Worker(corpus, CONFIG, SIZE, "cpu")
    worker.start()
    records = tuple(corpus.records())
    read = list(worker.read(Chunk(shard=0, records=records[:2])))
    failed = Outcome(record=records[0], status=Status.REJECTED, reason=Reason.TIMED_OUT)
    rows = {row.record: row for row in worker.label_crops([read[0], failed, read[1]])}
    assert rows.keys() == set(records[:2])
    assert rows[records[0]] is failed
    assert rows[records[1]].sha256 is not None
    assert worker.label_crops([]) == []


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_an_image_that_refinement_fails_for_does_not_affect_its_batch(
    corpus: FolderCorpus, backend: Literal["numba", "torch"]
) -> None:
    config = replace(
        CONFIG, refine="crf", crf=CrfConfig(backend=backend), encoder=replace(CONFIG.encoder, batch_size=4)
    )
    expected = label(corpus, config)
    bad = resize_image(decode_image(corpus.read(expected[1].record), config.decoding), SIZE)
    sizes = []

    def refine_or_fail(images: Sequence[np.ndarray], *arguments: Any, **keywords: Any) -> list[np.ndarray]:
        sizes.append(len(images))
        if any(np.array_equal(image, bad) for image in images):
            raise RuntimeError("surprise")
        return refine_images(images, *arguments, **keywords)

    encoder = load_encoder(config.encoder, "cpu", 1)
    rows = label(corpus, config, load=lambda config, _: PatchLabeller(config, encoder, refine_or_fail))
    assert (rows[1].reason, rows[1].detail) == (Reason.FAILED, "while labelling: RuntimeError: surprise")
    for i in (0, 2, 3):
        assert rows[i].reason == expected[i].reason
        assert (rows[i].instances is None) == (expected[i].instances is None)
        if rows[i].instances is not None:
            assert rows[i].instances.rles == expected[i].instances.rles
    assert sizes == [3, 1, 1, 1]


@pytest.mark.parametrize("part", ["encoder", "refinement"])
def test_a_lack_of_gpu_memory_is_no_images_fault(
    corpus: FolderCorpus, part: Literal["encoder", "refinement"]
) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory")
    encoder = FaultyEncoder(error) if part == "encoder" else load_encoder(CONFIG.encoder, "cpu", 1)

    def fail(*_: object, **__: object) -> Any:
        raise error

    with pytest.raises(DeviceMemoryError, match="CUDA out of memory"):
        label(
            corpus,
            replace(CONFIG, refine="crf"),
            load=lambda config, _: PatchLabeller(config, encoder, fail),
        )


def test_a_worker_without_room_on_its_gpu_raises_when_it_starts(corpus: FolderCorpus) -> None:
    encoder = FaultyEncoder(torch.OutOfMemoryError("CUDA out of memory"))
    with fake_cuda(), pytest.raises(DeviceMemoryError):
        Worker(corpus, CONFIG, SIZE, "cuda", lambda config, _: PatchLabeller(config, encoder)).start()
    assert encoder.batches == [1]


def test_a_chunk_without_a_readable_image(corpus: FolderCorpus) -> None:
    (outcome,) = label(FolderCorpus(corpus._objects, ("2.png",)))
    assert outcome.reason == Reason.NOT_AN_IMAGE


def test_tiles_of_several_images_share_batches(corpus: FolderCorpus) -> None:
    # A 48 x 64 image has 6 tiles of 32: with the whole that is 7 crops, in batches of 2.
    config = replace(CONFIG, tiling=TilingConfig(tile=32))
    encoder = load_encoder(config.encoder, "cpu", 1)
    rows = label(corpus, config)
    assert rows[2].reason == Reason.NOT_AN_IMAGE
    other_rows = label(corpus, config, chunk_size=1)
    for i in (0, 1, 3):
        image = decode_image(corpus.read(rows[i].record), config.decoding)
        expected = label_images([image], PatchLabeller(config, encoder), config)[0].instances
        assert expected is not None
        for found in (rows[i].instances, other_rows[i].instances):
            assert found is not None
            assert found.rles == expected.rles
            assert found.scores.tobytes() == expected.scores.tobytes()


@pytest.fixture
def by_network(tmp_path: Path) -> LabellingConfig:
    """Labelling by a network of random weights that finds objects everywhere."""
    solo = SoloConfig(
        backbone="test_resnet",
        image_size=SIZE[0],
        pyramid_channels=8,
        head_channels=8,
        mask_channels=8,
        head_depth=1,
        grid=GridConfig(grids=(6, 5, 4, 3, 2)),
    )
    network = build_network(solo)
    nn.init.constant_(network.category_head.prediction.bias, 2.0)
    weights = tmp_path / "network.safetensors"
    weights.write_bytes(pack_network(network.state_dict(), solo))
    return LabellingConfig(
        method="solo",
        network=NetworkConfig(weights=str(weights), batch_size=2),
        detection=DetectionConfig(max_instances=7),
    )


def test_a_network_labels_images_and_tiles(corpus: FolderCorpus, by_network: LabellingConfig) -> None:
    assert by_network.network.weights is not None
    network, solo, _ = load_network(by_network.network.weights, torch.device("cpu"))
    solo = replace(solo, detection=by_network.detection)
    rows = label(corpus, by_network)
    assert rows[2].reason == Reason.NOT_AN_IMAGE
    tiled = replace(by_network, tiling=TilingConfig(tile=48, duplicate_iou=1, duplicate_ioa=1))
    together, alone = label(corpus, tiled), label(corpus, tiled, chunk_size=1)
    for i in (0, 1, 3):
        image = decode_image(corpus.read(rows[i].record), by_network.decoding)
        (expected,) = find_instances(network, [image], solo)
        found, first, second = (row[i].instances for row in (rows, together, alone))
        assert found is not None
        assert 0 < len(found) <= 7
        assert (found.rles, found.method) == (expected.rles, "solo")
        # Sums differ in their last bits between a batch of one and a padded batch.
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
        assert rows[i].optimality is None
        # The whole image and its tiles, whatever batches they are in.
        assert first is not None
        assert second is not None
        assert first.rles == second.rles
        assert set(first.rles) > set(found.rles)


class FailingNetwork(TrainedNetwork):
    def process_crop(self, outputs: object, number: int, crop: Crop) -> Labels:
        raise RuntimeError("surprise")


def test_an_image_that_a_network_fails_for_is_a_row(
    corpus: FolderCorpus, by_network: LabellingConfig
) -> None:
    def load(config: LabellingConfig, device: str) -> Labeller:
        return NetworkLabeller(config, [FailingNetwork(str(config.network.weights), config, device)])

    rows = label(corpus, by_network, load=load)
    assert [row.reason for row in rows] == [Reason.FAILED] * 2 + [Reason.NOT_AN_IMAGE, Reason.FAILED]
