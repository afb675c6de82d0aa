"""Training from the command line: on a local Ray, with one or two workers, and with crashing ones."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.numpy import load_file

from engine.corpora import FolderCorpus
from engine.errors import UsageError
from engine.objects.local import LocalObjects
from engine.solo.labelled_images import list_images
from engine.solo.run import Run, train_solo
from engine.solo.samples import SampleMaker
from engine.store.pseudo_labels import PseudoLabelStore
from engine.training.distribution import WorkerContext
from engine.training.metrics import read_metrics
from engine.types import Status
from jobs.cli.console import parse_arguments
from jobs.train_solo import TrainArguments

_JOB = Path(__file__).parents[2] / "jobs/train_solo.py"
_FLAGS = (
    "--steps", "8", "--batch-size", "4", "--snapshots", "2", "--deterministic",
    "--solo.backbone", "test_resnet", "--solo.image-size", "64", "--solo.pyramid-channels", "16",
    "--solo.head-channels", "16", "--solo.mask-channels", "16", "--solo.head-depth", "1",
    "--solo.grid.grids", "8", "6", "4", "3", "2", "--samples.superpixels.num-segments", "40",
    "--optimiser.kind", "adamw", "--optimiser.learning-rate", "0.002", "--optimiser.warmup-steps", "2",
    "--log-every", "1", "--checkpoint-every", "2", "--processes", "0",
)  # fmt: skip


def flags(discs: tuple[Path, Path], output: Path, *more: str) -> list[str]:
    images, store = discs
    places = ["--store", str(store), "--corpus", str(images), "--output", str(output)]
    return [*places, *_FLAGS, "--cache", str(output.parent / "cache"), *more]


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(LocalObjects(output)) if "loss" in line]


def test_train_measure_and_label(
    labelled_discs: tuple[Path, Path],
    run_job: Callable[..., subprocess.CompletedProcess[str]],
    run_here: Callable[..., subprocess.CompletedProcess[str]],
    cluster: Any,
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(true_annotations(labelled_discs[1])))
    to_cluster = ["--address", cluster.address]
    more = ["--ground-truth", str(truth), "--held-out", "0.4", "--processes", "1"]
    given = flags(labelled_discs, output, *more, *to_cluster)
    done = run_job("train_solo", *given, **cluster.environment)
    assert done.returncode == 0, done.stderr
    assert "8/8 steps, loss" in done.stdout
    assert "mask_AP50" in done.stdout
    assert np.isfinite(losses(output)).all()
    assert len(losses(output)) == 8
    assert {path.name for path in output.glob("*")} == {
        "checkpoint.pt", "log", "network-000000004.safetensors", "network-000000008.safetensors",
        "network.safetensors", "training.json",
    }  # fmt: skip
    # The network's labels replace those that it learned from, if --overwrite allows it.
    labels = PseudoLabelStore(LocalObjects(labelled_discs[1]))
    before = labels.version()
    by_network = ["--method", "solo", "--weights", str(output / "network-000000004.safetensors")]
    # After 8 steps scores are low: thresholds of 0 make every cell an object.
    by_network += ["--detection.min-score", "0", "--detection.min-score-after-nms", "0"]
    command = ["--corpus", str(labelled_discs[0]), "--store", str(labelled_discs[1]), *by_network]
    command += ["--preview", str(tmp_path / "previews")]
    refused = run_here("label_folder", *command)
    assert (refused.returncode, "--overwrite" in refused.stderr) == (2, True)
    done = run_job("label_folder", *command, "--overwrite", *to_cluster, **cluster.environment)
    assert done.returncode == 0, done.stderr
    version = labels.version()
    assert version.name != before.name
    rows = list(version.outcomes())
    assert {row.instances.method for row in rows if row.instances is not None} == {"solo"}
    assert {(row.status, row.optimality) for row in rows} == {(Status.LABELLED, None)}
    assert len(list((tmp_path / "previews").glob("*.jpg"))) == len(rows) + 1
    assert version.info.configuration["network"]["image_size"] == 64
    assert version.info.configuration["refine"] == "none"
    assert str(tmp_path) not in json.dumps(asdict(version.info))
    assert len(version.info.weights_digest) == 64


def test_held_out_without_ground_truth_is_wrong_use() -> None:
    places = ["--store", "a", "--corpus", "b", "--output", "c"]
    for given in (["--held-out", "0.4"], ["--ground-truth", "d"]):
        with pytest.raises(UsageError, match="go together"):
            parse_arguments(TrainArguments, [*places, *given])
    assert parse_arguments(TrainArguments, [*places, *_FLAGS]).training.solo.backbone == "test_resnet"
    for given in (["--workers", "0"], ["--optimiser.learning-rate", "nan"]):
        with pytest.raises(
            UsageError, match=r"--workers is a whole number >= 1|--optimiser.learning-rate is a number > 0"
        ):
            parse_arguments(TrainArguments, [*places, *given])


def true_annotations(store: Path) -> dict[str, list[dict[str, object]]]:
    """The store's instances as COCO ground truth."""
    content: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": []}
    for number, outcome in enumerate(PseudoLabelStore(LocalObjects(store)).version().outcomes(), 1):
        if outcome.instances is None:
            continue
        (rle,), (box,) = outcome.instances.rles, outcome.instances.boxes_xyxy.tolist()
        content["images"].append({"id": number, "file_name": outcome.record.path, "height": 48, "width": 64})
        content["annotations"].append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                "segmentation": {"size": [48, 64], "counts": rle.decode()},
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "area": int(outcome.instances.areas[0]),
            }
        )
    return content


def train_here(given: list[str]) -> Path:
    """Run the same training in this process without interruption; returns its output."""
    arguments = parse_arguments(TrainArguments, given)
    config, output = arguments.training, LocalObjects(Path(arguments.output))
    version = PseudoLabelStore(LocalObjects(Path(arguments.store))).version()
    maker = SampleMaker(
        list_images(version, config.selection),
        FolderCorpus.open(arguments.corpus),
        arguments.trainer.cache,
        config.sample_task,
    )
    train_solo(
        Run(output=output, config=config, settings=arguments.trainer.run, context=WorkerContext()), maker
    )
    return Path(output.uri)


@pytest.mark.slow
def test_two_workers_learn_the_same_as_one(
    labelled_discs: tuple[Path, Path],
    run_job: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train_here(flags(labelled_discs, one))
    done = run_job("train_solo", *flags(labelled_discs, two, "--workers", "2"))
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(two), losses(one), rtol=2e-3)


@pytest.mark.slow
def test_a_killed_worker_does_not_change_the_result(
    labelled_discs: tuple[Path, Path], tmp_path: Path
) -> None:
    # Enough steps for the crash to fall into the run, and checkpoints far enough apart to lose work.
    long = ("--steps", "60", "--checkpoint-every", "7")
    output, log = tmp_path / "out", tmp_path / "log"
    with log.open("wb") as sink:
        command = [sys.executable, str(_JOB), *flags(labelled_discs, output, *long)]
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
    while not (output / "log/figures-000000007.jsonl").exists() and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, log.read_text()
    (worker,) = (c for c in psutil.Process(process.pid).children(recursive=True) if is_worker(c))
    worker.send_signal(signal.SIGKILL)
    assert process.wait() == 0, log.read_text()
    # The last bits of sums depend on the number of threads.
    torch.set_num_threads(threads_in(log.read_text()))
    undisturbed = train_here(flags(labelled_discs, tmp_path / "undisturbed", *long))
    expected, found = (load_file(folder / "network.safetensors") for folder in (undisturbed, output))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert losses(output) == losses(undisturbed)


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_resume(labelled_discs: tuple[Path, Path], tmp_path: Path) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    command = [sys.executable, str(_JOB), *flags(labelled_discs, output, "--steps", "4000")]
    with log.open("wb") as sink:
        # A session of its own, whose processes are interrupted together, as by a terminal.
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True)
    while not (output / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130, log.read_text()
    assert "interrupted; the same command goes on (trainings: with --resume)" in log.read_text()


def threads_in(log: str) -> int:
    """The number of CPUs per worker, as the job prints it."""
    found = re.search(r"worker\(s\) of (\d+) CPUs", log)
    assert found is not None
    return int(found[1])


def is_worker(process: psutil.Process) -> bool:
    """Whether this is a training worker, by the name that Ray gives the process."""
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False
