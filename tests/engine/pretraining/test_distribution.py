"""Two workers learn the same as one from the same batches."""

from pathlib import Path

import pytest
import torch

from engine.corpora import FolderCorpus
from engine.errors import ConfigurationError
from engine.objects.local import LocalObjects
from engine.pretraining.config import PretrainingConfig
from engine.pretraining.dino import DinoConfig
from engine.pretraining.regions import RegionConfig
from engine.pretraining.run import Run, pretrain
from engine.pretraining.schedules import OptimiserConfig
from engine.pretraining.views import ViewConfig
from engine.training.distribution import WorkerContext
from engine.training.metrics import read_metrics
from engine.training.settings import RunSettings

# Without the contrast of regions, in which each worker contrasts the regions of its own images only.
CONFIG = PretrainingConfig(
    name="test_vit",
    batch_size=4,
    steps=4,
    cache_side=40,
    dino=DinoConfig(num_prototypes=8, hidden_size=8, bottleneck_size=4, frozen_share=0),
    regions=RegionConfig(weight=0),
    views=ViewConfig(global_size=32, local_size=16, num_local=1),
    optimiser=OptimiserConfig(learning_rate=0.05),
)


def losses_of(output: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(LocalObjects(output))]


def work(rank: int, world_size: int, folder: Path) -> None:
    """One worker of a run whose output is folder/out<world size>."""
    torch.set_num_threads(1)
    if world_size > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size
        )
    corpus = FolderCorpus.open(str(folder / "images"))
    pretrain(
        Run(
            corpora=[corpus],
            output=LocalObjects(folder / f"out{world_size}"),
            config=CONFIG,
            settings=RunSettings(processes=0, log_every=1),
            context=WorkerContext(rank=rank, world_size=world_size),
            cache=folder / "cache",
        )
    )
    if world_size > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_workers_learn_the_same_as_one(photograph, encode_image, tmp_path):
    (tmp_path / "images").mkdir()
    for seed in range(6):
        (tmp_path / "images" / f"{seed}.png").write_bytes(encode_image(photograph(seed), "PNG"))
    work(0, 1, tmp_path)
    torch.multiprocessing.spawn(work, (2, tmp_path), nprocs=2)
    alone, together = losses_of(tmp_path / "out1"), losses_of(tmp_path / "out2")
    assert len(alone) == 4
    assert len(set(alone)) == 4
    assert together == pytest.approx(alone, rel=1e-3)


def test_a_batch_divides_into_whole_images():
    assert WorkerContext(world_size=3).local_batch_size(12) == 4
    with pytest.raises(ConfigurationError, match="give a multiple"):
        WorkerContext(world_size=3).local_batch_size(4)
