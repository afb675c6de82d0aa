"""Self-training from the command line, killed in each of its phases."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.corpora import FolderCorpus
from engine.errors import UsageError
from engine.images.decoding import decode_image
from engine.labelling.labeller import label_images, load_labeller
from engine.labelling.outcomes import make_outcome
from engine.objects.local import LocalObjects
from engine.solo.labelled_images import list_images
from engine.solo.run import Run, train_solo
from engine.solo.samples import SampleMaker
from engine.store.pseudo_labels import PseudoLabelStore, Version
from engine.training.distribution import WorkerContext
from engine.types import Outcome, ShardPlan, Status
from jobs.cli.console import parse_arguments
from jobs.self_train import SelfTrainArguments

_JOB = Path(__file__).parents[2] / "jobs/self_train.py"
_FLAGS = (
    "--steps", "6", "--batch-size", "4", "--snapshots", "3", "--deterministic",
    "--solo.backbone", "test_resnet", "--solo.image-size", "64", "--solo.pyramid-channels", "16",
    "--solo.head-channels", "16", "--solo.mask-channels", "16", "--solo.head-depth", "1",
    "--solo.grid.grids", "8", "6", "4", "3", "2", "--samples.superpixels.num-segments", "40",
    # Networks that learned next to nothing need thresholds of 0 to find anything.
    "--solo.detection.min-score", "0", "--solo.detection.min-score-after-nms", "0",
    "--solo.detection.mask-threshold", "0.3", "--solo.detection.max-before-nms", "20",
    "--solo.detection.max-instances", "5", "--later.selection.min-score", "0",
    "--optimiser.kind", "adamw", "--optimiser.learning-rate", "0.002", "--optimiser.warmup-steps", "2",
    "--log-every", "1", "--checkpoint-every", "2", "--processes", "0", "--chunk-size", "2",
)  # fmt: skip
KillDriver = Callable[[subprocess.Popen[bytes]], None]


@pytest.fixture
def discs(labelled_discs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A folder with images/, some of them missing, and labels/ with their labels in three shards."""
    images, store = labelled_discs
    root = tmp_path / "work"
    root.mkdir()
    images.rename(root / "images")
    before = PseudoLabelStore(LocalObjects(store)).version()
    version = PseudoLabelStore(LocalObjects(root / "labels")).begin(before.info, "resume")
    outcomes = list(before.outcomes())
    for index in range(3):
        shard = outcomes[3 * index : 3 * index + 3]
        records = tuple(outcome.record for outcome in shard)
        version.record_plan(ShardPlan(index=index, records=records, is_last=index == 2))
        version.commit(index, shard)
    version.finish()
    (root / "truth.json").write_text(json.dumps(true_annotations(outcomes)))
    return root


def true_annotations(outcomes: list[Outcome]) -> dict[str, list[dict[str, object]]]:
    """The discs as ground truth in COCO's format."""
    content: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": []}
    for number, outcome in enumerate(outcomes, 1):
        if outcome.instances is not None:
            entry = {"id": number, "file_name": outcome.record.path, "height": 48, "width": 64}
            content["images"].append(entry)
            segmentation = {"size": [48, 64], "counts": outcome.instances.rles[0].decode()}
            content["annotations"].append(
                {"image_id": number, "iscrowd": 0, "category_id": 1, "segmentation": segmentation}
            )
    return content


def flags(root: Path, *more: str) -> list[str]:
    places = ["--store", str(root / "labels"), "--corpus", str(root / "images")]
    places += ["--output", str(root / "networks"), "--cache", str(root / "cache")]
    return [*places, "--ground-truth", str(root / "truth.json"), *_FLAGS, *more]


def version_in(root: Path, number: int) -> Version:
    return PseudoLabelStore(LocalObjects(root / "labels")).version(number)


def kill_when(root: Path, given: list[str], sign: str, kill_driver: KillDriver) -> None:
    """Run the job until a file appears, then kill it."""
    log = root / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen([sys.executable, str(_JOB), *given], stdout=sink, stderr=subprocess.STDOUT)
    while next(root.glob(sign), None) is None and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None, log.read_text()
    kill_driver(process)


def train_and_predict_here(root: Path, given: list[str]) -> list[Outcome]:
    """The rows of round 1, made in this process, image by image."""
    arguments = parse_arguments(SelfTrainArguments, given)
    config, output = arguments.config.training_of(0), LocalObjects(root / "here")
    corpus = FolderCorpus.open(arguments.corpus)
    images = list_images(version_in(root, 0), config.selection)
    maker = SampleMaker(images, corpus, arguments.trainer.cache, config.sample_task)
    # The last bits of sums depend on the number of threads: the training's, and 1 for labelling.
    torch.set_num_threads(threads_in((root / "log").read_text()))
    train_solo(
        Run(output=output, config=config, settings=arguments.trainer.run, context=WorkerContext()), maker
    )
    torch.set_num_threads(1)
    networks = [f"{output.uri}/{key}" for key in output.keys("network-")]
    assert len(networks) == 3
    labelling = arguments.config.labelling(networks)
    labeller = load_labeller(labelling, "cpu")
    rows = []
    for outcome in version_in(root, 0).outcomes():
        if outcome.status != Status.REJECTED:
            image = decode_image(corpus.read(outcome.record), config.samples.decoding)
            (labels,) = label_images([image], labeller, labelling)
            rows.append(make_outcome(outcome.record, image.shape[:2], "", labels))
    return rows


def test_a_killed_round_ends_with_the_same_labels(
    discs: Path, run_job: Callable[..., subprocess.CompletedProcess[str]], kill_driver: KillDriver
) -> None:
    given = flags(discs, "--rounds", "1")
    kill_when(discs, given, "labels/round-001-*/plan/*", kill_driver)
    assert not list(discs.glob("labels/round-001-*/manifest.parquet"))
    done = run_job("self_train", *given)
    assert done.returncode == 0, done.stderr
    assert "holds the trained network already" in done.stdout
    before, version = version_in(discs, 0), version_in(discs, 1)
    assert version.is_finished()
    assert version.info.parent == before.name
    assert version.info.configuration["training"]["objective"]["mask_term"] == "superpixel"
    assert len(version.info.configuration["earlier_networks"]) == 2
    assert [plan.records for plan in version.plans()] == [plan.records for plan in before.plans()]
    assert version.evaluations().keys() == before.evaluations().keys()
    expected = train_and_predict_here(discs, given)
    found = [outcome for outcome in version.outcomes() if outcome.status != Status.REJECTED]
    assert len(found) == len(expected) == 6
    for outcome, row in zip(found, expected, strict=True):
        assert outcome.instances is not None
        assert row.instances is not None
        assert outcome.instances.rles == row.instances.rles
        assert np.array_equal(outcome.instances.stabilities, row.instances.stabilities)
        assert np.array_equal(outcome.instances.scores, row.instances.scores)
    stabilities = np.concatenate(list(version.instance_columns("stability")))
    assert ((stabilities >= 0) & (stabilities <= 2)).all()
    assert stabilities.max() > 0
    metrics = json.loads((discs / "networks/round-001.json").read_text())["metrics"]
    assert metrics["masks"] == len(stabilities)
    assert 0 < metrics["change"] <= 1
    assert metrics["mask_ap"] is not None


def threads_in(log: str) -> int:
    """The number of CPUs per worker, as the job prints it."""
    found = re.search(r"worker\(s\) of (\d+) CPUs", log)
    assert found is not None
    return int(found[1])


# Files that appear when a phase of a round begins.
_PHASES = {
    "training": "networks/round-{before}/checkpoint.pt",
    "trained": "networks/round-{before}/network.safetensors",
    "planning": "labels/round-{after}-*/version.json",
    "labelling": "labels/round-{after}-*/shard-*",
    "labelled": "labels/round-{after}-*/manifest.parquet",
    "measured": "networks/round-{after}.json",
}


@pytest.mark.slow
def test_a_kill_in_every_phase_does_not_change_the_result(
    discs: Path,
    run_job: Callable[..., subprocess.CompletedProcess[str]],
    labels_in: Callable[[Path], dict[str, bytes]],
    kill_driver: KillDriver,
) -> None:
    undisturbed = discs.with_name("undisturbed")
    subprocess.run(["cp", "-r", str(discs), str(undisturbed)], check=True)
    rounds = ("--rounds", "2", "--min-change", "0")
    signs = [sign.format(before="000", after="001") for sign in _PHASES.values()]
    # The second round has another loss and starts from the network of the first.
    signs += [_PHASES[phase].format(before="001", after="002") for phase in ("training", "labelling")]
    for sign in signs:
        kill_when(discs, flags(discs, *rounds), sign, kill_driver)
    done = run_job("self_train", *flags(discs, *rounds))
    assert done.returncode == 0, done.stderr
    expected = run_job("self_train", *flags(undisturbed, *rounds))
    assert expected.returncode == 0, expected.stderr
    assert labels_in(discs / "labels") == labels_in(undisturbed / "labels")
    for number in range(2):
        one, other = (
            root / f"networks/round-{number:03d}/network.safetensors" for root in (discs, undisturbed)
        )
        assert one.read_bytes() == other.read_bytes()
    info = version_in(discs, 2).info
    assert info.configuration["training"]["objective"]["mask_term"] == "adaptive"
    assert info.parent == version_in(discs, 1).name
    # A finished run does nothing.
    before = {path: path.stat().st_mtime_ns for path in discs.rglob("*") if path.is_file()}
    again = run_job("self_train", *flags(discs, *rounds))
    assert again.returncode == 0, again.stderr
    assert " steps, " not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in discs.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_labels_that_settle_end_it(
    discs: Path, run_job: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run_job("self_train", *flags(discs, "--rounds", "3", "--min-change", "1"))
    assert done.returncode == 0, done.stderr
    assert "no further round" in done.stdout
    assert PseudoLabelStore(LocalObjects(discs / "labels")).rounds() == [0, 1]
    other = run_job("self_train", *flags(discs, "--rounds", "3", "--batch-size", "2"))
    assert other.returncode == 2
    assert "holds round 1 of another training (training.batch_size is 4 there, 2 here)" in other.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rounds", "0"], "--rounds is a whole number >= 1"),
        (["--snapshots", "1"], "set snapshots to 2 or more"),
        (["--min-change", "2"], "--min-change is a share"),
        (["--objective.mask-term", "adaptive"], "labels of round 0 have no stability"),
        (["--held-out", "0.5"], "give their --ground-truth"),
        (["--later.steps", "1"], "snapshots are at most"),
        (["--chunk-size", "0"], "--chunk-size is a whole number >= 1"),
    ],
)
def test_wrong_use_is_one_line(more: list[str], message: str) -> None:
    places = ["--store", "a", "--corpus", "b", "--output", "c"]
    with pytest.raises(UsageError, match=message):
        parse_arguments(SelfTrainArguments, [*places, *more])


def test_the_configuration_of_later_rounds() -> None:
    places = ["--store", "a", "--corpus", "b", "--output", "c"]
    given = [*places, "--later.steps", "70", "--later.learning-rate", "0.5", "--steps", "90"]
    config = parse_arguments(SelfTrainArguments, given).config
    first, later = config.training_of(0), config.training_of(1)
    assert (first.steps, later.steps, later.optimiser.learning_rate) == (90, 70, 0.5)
    assert (later.objective.mask_term, later.objective.needs_superpixels) == ("adaptive", False)
    assert later.solo == first.solo
    assert (first.ignore_above_score, later.ignore_above_score) == (None, 0.1)
    again = replace(config, later=replace(config.later, loss="superpixel")).training_of(4)
    assert again.objective == first.objective
