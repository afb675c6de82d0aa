from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.corpora import FolderCorpus
from engine.encoders import EncoderConfig, load_encoder
from engine.encoders.backbone import EMBEDDED_FILE
from engine.encoders.weights import digest_state, read_weights
from engine.errors import ConfigurationError, CorpusError, RunError, StoreError, WeightsError
from engine.objects.memory import MemoryObjects
from engine.pretraining.card import CARD_KEY, ENCODER_KEY
from engine.pretraining.config import PretrainingConfig
from engine.pretraining.dino import DinoConfig
from engine.pretraining.network import build_network
from engine.pretraining.regions import RegionConfig
from engine.pretraining.run import Run, check_training, describe_pretraining, pretrain
from engine.pretraining.schedules import OptimiserConfig
from engine.pretraining.trainer import Pretrainer
from engine.pretraining.views import ViewConfig, Views
from engine.training.checkpoints import CHECKPOINT_KEY, read_checkpoint
from engine.training.distribution import WorkerContext
from engine.training.metrics import read_metrics
from engine.training.order import epoch_order
from engine.training.output import check_output, create_output
from engine.training.settings import RunSettings
from tests.fake_cuda import fake_cuda

CONFIG = PretrainingConfig(
    name="test_vit",
    patch_size=8,
    depth=2,
    batch_size=4,
    steps=5,
    cache_side=40,
    dino=DinoConfig(num_prototypes=8, hidden_size=8, bottleneck_size=4),
    regions=RegionConfig(counts=(2, 4)),
    views=ViewConfig(global_size=32, local_size=16, num_local=1),
)


@pytest.fixture
def corpus(tmp_path, photograph, encode_image):
    """Five photographs and a file that is no image."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(5):
        (folder / f"{seed}.png").write_bytes(encode_image(photograph(seed), "PNG"))
    (folder / "2a.png").write_bytes(b"no image")
    return FolderCorpus.open(str(folder))


@pytest.fixture
def train(corpus, tmp_path):
    """`train(config, output)` runs a pre-training on `corpus` in this process."""

    def train(config, output):
        settings = RunSettings(processes=0, log_every=2, checkpoint_every=1)
        pretrain(
            Run(
                corpora=[corpus],
                output=output,
                config=config,
                settings=settings,
                context=WorkerContext(),
                cache=tmp_path / "cache",
            )
        )
        return output

    return train


class StoppingObjects(MemoryObjects):
    """Fails when the third checkpoint is written, like a machine that goes away."""

    writes = 0

    def write(self, key, data):
        if key == CHECKPOINT_KEY:
            self.writes += 1
            if self.writes == 3:
                raise StoreError("gone")
        super().write(key, data)


def test_a_resumed_run_ends_with_the_same_bytes(corpus, train):
    whole, broken = train(CONFIG, MemoryObjects()), StoppingObjects()
    description = describe_pretraining(CONFIG, [corpus])
    assert not create_output(broken, description, resume=False)
    with pytest.raises(StoreError):
        train(CONFIG, broken)
    assert not check_output(broken, description, resume=True)
    train(CONFIG, broken)
    assert check_output(broken, description, resume=True)
    assert whole.read(ENCODER_KEY) == broken.read(ENCODER_KEY)
    lines = [read_metrics(store) for store in (whole, broken)]
    assert [line["step"] for line in lines[0]] == [1, 2, 4, 5]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    card = broken.read(CARD_KEY).decode()
    assert "6 of" in card
    assert "2a.png: not_an_image" in card
    # A worker that dies after the last step only writes the results again.
    train(CONFIG, broken)
    assert whole.read(ENCODER_KEY) == broken.read(ENCODER_KEY)


def test_the_encoder_loads_by_its_name_and_file(train, tmp_path):
    config = replace(CONFIG, steps=1, dino=replace(CONFIG.dino, weight=0))
    output = train(config, MemoryObjects())
    file = tmp_path / "encoder.safetensors"
    file.write_bytes(output.read(ENCODER_KEY))
    encoder = load_encoder(EncoderConfig(name="test_vit", weights=str(file), image_size=48), "cpu")
    assert encoder.grid == (6, 6)
    # It gives the teacher's keys, up to rounding to float16.
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    state = read_checkpoint(output)
    network = build_network(config).eval()
    network.load_state_dict(state["trainer"]["teacher"])
    views = torch.from_numpy(image).permute(2, 0, 1).expand(1, 2, 3, 32, 32)
    keys = network(views, views[:, :0]).keys[0, 0]
    expected = torch.nn.functional.normalize(keys, dim=-1).reshape(4, 4, -1)
    assert torch.allclose(encoder.encode([image])[0].float(), expected, atol=5e-3)

    with pytest.raises(WeightsError, match="are of a test_vit, not of 'vit_tiny_patch16_224'"):
        load_encoder(EncoderConfig(name="vit_tiny_patch16_224", weights=str(file)), "cpu")

    # Training can start from it, with its patch size and depth.
    onwards = replace(config, weights=str(file), patch_size=None, depth=None)
    assert build_network(onwards).layout == network.layout
    assert torch.equal(
        build_network(onwards).transformer.cls_token, network.transformer.cls_token.half().float()
    )


def test_training_can_start_from_the_embedded_encoder():
    config = PretrainingConfig(name="embedded")
    network = build_network(config)
    weights = read_weights(str(EMBEDDED_FILE))
    assert network.layout == weights.layout
    state = network.encoder_state()
    assert digest_state(state) == load_encoder(EncoderConfig(image_size=64), "cpu").weights_digest
    with pytest.raises(ConfigurationError, match="brings its own weights"):
        PretrainingConfig(name="embedded", weights="encoder.safetensors")
    with pytest.raises(ConfigurationError, match="leave one of them out"):
        PretrainingConfig(name="embedded", depth=3)


def test_without_the_image_level_loss_nothing_behind_the_keys_is_trained(train):
    config = replace(CONFIG, dino=replace(CONFIG.dino, weight=0))
    output = train(config, MemoryObjects())
    student = read_checkpoint(output)["trainer"]["student"]
    before = build_network(config).state_dict()
    assert before.keys() == student.keys()
    untrained = {name for name in before if torch.equal(before[name], student[name])}
    assert {name.split(".block.")[1].split(".")[0] for name in untrained if ".block." in name} >= {
        "mlp",
        "norm2",
    }
    assert "transformer.patch_embed.proj.weight" not in untrained
    assert "transformer.blocks.1.block.attn.qkv.weight" not in untrained
    assert not any(name.startswith("head") for name in before)


def test_another_run_is_refused(corpus):
    output, config = MemoryObjects(), replace(CONFIG, steps=1)
    create_output(output, describe_pretraining(config, [corpus]), resume=False)
    other = replace(config, seed=1, steps=2)
    with pytest.raises(ConfigurationError, match="differs in steps, seed"):
        check_output(output, describe_pretraining(other, [corpus]), resume=True)
    fewer = replace(config, limit=3)
    with pytest.raises(ConfigurationError, match="differs in images, limit"):
        check_output(output, describe_pretraining(fewer, [corpus]), resume=True)


def test_a_damaged_cache_is_made_anew(train, tmp_path):
    config = replace(CONFIG, steps=1)
    first = train(config, MemoryObjects())
    cached = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert cached
    for path in cached:
        path.write_bytes(b"")
    second = train(config, MemoryObjects())
    assert first.read(ENCODER_KEY) == second.read(ENCODER_KEY)


def test_a_time_budget_ends_the_run_and_its_schedules(train):
    config = replace(CONFIG, steps=10_000, max_minutes=0.5 / 60)
    last = read_metrics(train(config, MemoryObjects()))[-1]
    assert last["progress"] == 1
    assert last["step"] < 500
    assert last["learning_rate"] == pytest.approx(config.optimiser.final_learning_rate)


def test_a_loss_that_is_not_finite_stops_the_run():
    trainer = Pretrainer(
        replace(CONFIG, optimiser=OptimiserConfig(learning_rate=1e30, warmup_share=0)), WorkerContext()
    )
    views = Views(
        torch.randint(256, (4, 2, 3, 32, 32), dtype=torch.uint8),
        torch.randint(256, (4, 1, 3, 16, 16), dtype=torch.uint8),
        torch.zeros((4, 2, 4, 4), dtype=torch.uint8),
    )
    trainer.train_step(views, 0.1)
    with pytest.raises(RunError, match=r"at step 2: lower optimiser\.learning_rate"):
        trainer.train_step(views, 0.2)
    assert trainer.step == 1


def test_a_step_measures_the_same_on_a_gpu():
    views = Views(
        torch.randint(0, 256, (4, 2, 3, 32, 32), dtype=torch.uint8),
        torch.randint(0, 256, (4, 1, 3, 16, 16), dtype=torch.uint8),
        torch.randint(0, 3, (4, 2, 4, 4), dtype=torch.uint8),
    )
    expected = Pretrainer(CONFIG, WorkerContext()).train_step(views, 0.5)
    with fake_cuda():
        measured = Pretrainer(CONFIG, WorkerContext(device=torch.device("cuda"))).train_step(views, 0.5)
    for name in ("loss", "dino", "regions", "region_accuracy", "teacher_entropy", "key_spread"):
        assert getattr(measured, name) == pytest.approx(getattr(expected, name), rel=1e-3), name


def test_a_corpus_without_readable_images_is_refused(corpus, train):
    for path in Path(corpus.uri).iterdir():
        path.write_bytes(b"")
    with pytest.raises(CorpusError, match=r"6 images in a row cannot be read, the first is .*\.png \("):
        train(CONFIG, MemoryObjects())


def test_every_epoch_has_every_image_in_another_order():
    first, second = (epoch_order(0, epoch, 20).tolist() for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second


def test_errors_of_all_workers_are_raised_before_they_start():
    check_training(CONFIG, 2)
    with pytest.raises(ConfigurationError, match="batch_size 4 does not divide among 3 workers"):
        check_training(CONFIG, 3)
    with pytest.raises(ConfigurationError, match="no multiple of the patch size 16"):
        check_training(replace(CONFIG, patch_size=16, views=ViewConfig(global_size=24)), 1)
    with pytest.raises(ConfigurationError, match="trained weights have their own"):
        replace(CONFIG, weights="a.safetensors")
    with pytest.raises(ConfigurationError, match="nothing would be learned"):
        replace(CONFIG, dino=replace(CONFIG.dino, weight=0), regions=replace(CONFIG.regions, weight=0))
