"""Two processes that share a batch learn the same as one from the whole batch."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed
import torch.multiprocessing

from engine.corpora import FolderCorpus
from engine.objects.local import LocalObjects
from engine.solo.config import SoloConfig
from engine.solo.labelled_images import list_images
from engine.solo.run import Run, train_solo
from engine.solo.samples import SampleConfig, SampleMaker
from engine.solo.training_config import TrainingConfig
from engine.store.pseudo_labels import PseudoLabelStore
from engine.store.selection import SelectionConfig
from engine.superpixels import SuperpixelConfig
from engine.training.distribution import WorkerContext
from engine.training.metrics import read_metrics
from engine.training.schedule import OptimiserConfig
from engine.training.settings import RunSettings


def train(discs: tuple[Path, Path], output: Path, config: TrainingConfig, context: WorkerContext) -> None:
    images, store = discs
    labelled = list_images(PseudoLabelStore(LocalObjects(store)).version(), SelectionConfig())
    corpus = FolderCorpus.open(str(images))
    maker = SampleMaker(labelled, corpus, output.parent / "cache", config.sample_task)
    settings = RunSettings(processes=0, log_every=1)
    train_solo(Run(output=LocalObjects(output), config=config, settings=settings, context=context), maker)


def train_one_of_two(
    rank: int, address: str, discs: tuple[Path, Path], output: Path, config: TrainingConfig
) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    train(discs, output, config, WorkerContext(rank=rank, world_size=2))
    torch.distributed.destroy_process_group()


def test_two_processes_learn_the_same_as_one(
    labelled_discs: tuple[Path, Path], tiny_solo: SoloConfig, tmp_path: Path
) -> None:
    config = TrainingConfig(
        steps=5,
        batch_size=4,
        snapshots=1,
        solo=tiny_solo,
        optimiser=OptimiserConfig(learning_rate=0.01, warmup_steps=0),
        samples=SampleConfig(superpixels=SuperpixelConfig(num_segments=40)),
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    torch.multiprocessing.start_processes(
        train_one_of_two,
        (address, labelled_discs, tmp_path / "two", config),
        nprocs=2,
        start_method="spawn",
    )
    train(labelled_discs, tmp_path / "one", config, WorkerContext())
    one, two = (read_metrics(LocalObjects(tmp_path / name)) for name in ("one", "two"))
    for name in ("loss", "focal", "mask", "soft", "positives", "fallback_share", "gradient_norm"):
        np.testing.assert_allclose([x[name] for x in two], [x[name] for x in one], rtol=1e-3, err_msg=name)
    # Without totals over both, the workers' parts would be weighted by their own counts.
    alone = replace(config, batch_size=2)
    train(labelled_discs, tmp_path / "half", alone, WorkerContext())
    half = read_metrics(LocalObjects(tmp_path / "half"))
    assert abs(half[0]["loss"] / one[0]["loss"] - 1) > 1e-2
