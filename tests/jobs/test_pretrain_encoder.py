"""Pre-training from the command line: resuming a stopped run, and its results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from engine.corpora import FolderCorpus
from engine.encoders import EncoderConfig, load_encoder
from engine.errors import StoreError
from engine.objects.local import LocalObjects
from engine.objects.memory import MemoryObjects
from engine.pretraining.card import CARD_KEY, ENCODER_KEY
from engine.pretraining.config import PretrainingConfig
from engine.pretraining.dino import DinoConfig
from engine.pretraining.regions import RegionConfig
from engine.pretraining.run import Run, describe_pretraining, pretrain
from engine.pretraining.views import ViewConfig
from engine.training.checkpoints import CHECKPOINT_KEY
from engine.training.distribution import WorkerContext
from engine.training.metrics import read_metrics
from engine.training.output import create_output
from engine.training.settings import RunSettings

CONFIG = PretrainingConfig(
    name="test_vit",
    batch_size=4,
    steps=6,
    cache_side=40,
    dino=DinoConfig(num_prototypes=8, hidden_size=8, bottleneck_size=4),
    regions=RegionConfig(counts=(2, 4)),
    views=ViewConfig(global_size=32, local_size=16, num_local=1),
)
FLAGS = [
    "--encoder", "test_vit", "--batch-size", "4", "--steps", "6", "--cache-side", "40",
    "--dino.num-prototypes", "8", "--dino.hidden-size", "8", "--dino.bottleneck-size", "4",
    "--regions.counts", "2", "4", "--views.global-size", "32", "--views.local-size", "16",
    "--views.num-local", "1", "--log-every", "2", "--processes", "1",
]  # fmt: skip
RunJob = Callable[..., CompletedProcess[str]]


class StoppingObjects(LocalObjects):
    """Fails when the fourth checkpoint is written, like a machine that goes away."""

    writes = 0

    def write(self, key: str, data: bytes) -> None:
        if key == CHECKPOINT_KEY:
            self.writes += 1
            if self.writes == 4:
                raise StoreError("gone")
        super().write(key, data)


@pytest.fixture
def threads_of_a_worker() -> Iterator[None]:
    """The last bits of sums depend on the number of threads: here as many as in the job's only worker, which
    has all CPUs of the cluster."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads_of_a_worker")
def test_a_job_resumes_a_run_that_stopped(
    run_job: RunJob, run_here: RunJob, cluster: Any, image_folder: Callable[[int], Path], tmp_path: Path
) -> None:
    corpus, output = FolderCorpus.open(str(image_folder(10))), tmp_path / "encoder"
    stopped = Run(
        corpora=[corpus],
        output=StoppingObjects(output),
        config=CONFIG,
        settings=RunSettings(processes=0, log_every=2, checkpoint_every=1),
        context=WorkerContext(),
        cache=tmp_path / "cache",
    )
    whole = replace(stopped, output=MemoryObjects())
    pretrain(whole)
    create_output(stopped.output, describe_pretraining(CONFIG, [corpus]), resume=False)
    with pytest.raises(StoreError):
        pretrain(stopped)

    flags = ["--corpus", corpus.uri, "--output", str(output), "--cache", str(tmp_path / "cache"), *FLAGS]
    refused = run_here("pretrain_encoder", *flags)
    assert refused.returncode == 2
    assert "holds this training already: --resume goes on with it" in refused.stderr

    to_cluster = ("--address", cluster.address)
    done = run_job("pretrain_encoder", *flags, "--resume", *to_cluster, **cluster.environment)
    assert done.returncode == 0, done.stderr
    assert "step 6, 100%" in done.stdout
    assert (output / ENCODER_KEY).read_bytes() == whole.output.read(ENCODER_KEY)
    assert [line["step"] for line in read_metrics(LocalObjects(output))] == [1, 2, 4, 6]
    assert "10 of" in (output / CARD_KEY).read_text()
    encoder = load_encoder(
        EncoderConfig(name="test_vit", weights=str(output / ENCODER_KEY), image_size=48), "cpu"
    )
    assert encoder.feature_size == 64

    again = run_here("pretrain_encoder", *flags, "--resume")
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stdout


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--corpus", "nowhere"], "no folder 'nowhere'"),
        (["--corpus", "skimage:", "--regions.counts", "1"], "counts is a number of regions, 2 to 256"),
    ],
)
def test_wrong_use_is_one_line(run_here: RunJob, tmp_path: Path, flags: list[str], complaint: str) -> None:
    refused = run_here("pretrain_encoder", "--output", str(tmp_path / "out"), *flags)
    assert refused.returncode == 2
    assert complaint in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
