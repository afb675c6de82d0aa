#!/usr/bin/env python
"""Compare mask losses: train on coarse masks, measure on clean ones."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray
from scipy import ndimage

from engine.bounds import Bounded, Count, CountOrZero
from engine.corpora import FolderCorpus
from engine.errors import ConfigurationError, CorpusError
from engine.evaluation.ground_truth import AnnotatedImage, read_ground_truth
from engine.masks.packing import make_instances
from engine.objects.local import LocalObjects
from engine.objects.memory import MemoryObjects
from engine.objects.object_store import ObjectStore
from engine.solo.augmentation import AugmentationConfig
from engine.solo.config import GridConfig, SoloConfig
from engine.solo.labelled_images import list_images
from engine.solo.samples import SampleConfig, SampleMaker
from engine.solo.training_config import TrainingConfig
from engine.solo.training_output import describe_training, labels_fingerprint
from engine.store.pseudo_labels import PseudoLabelStore, Version
from engine.store.version_info import VersionInfo
from engine.superpixels import SuperpixelConfig
from engine.training.distribution import WorkerContext
from engine.training.metrics import read_metrics
from engine.training.output import create_output
from engine.training.schedule import OptimiserConfig
from engine.training.settings import RunSettings
from engine.types import ImageRecord, Outcome, ShardPlan, Status
from jobs.cli.console import run_job

if TYPE_CHECKING:
    from engine.solo.run import Run

Results = dict[str, list[dict[str, float]]]
LossName = Literal["superpixel", "hard", "soft", "pixel"]
# The mask term and the weight of the soft loss; "soft" adds pixels, since it cannot stand alone.
_OBJECTIVES: dict[LossName, tuple[Literal["superpixel", "pixel"], float]] = {
    "superpixel": ("superpixel", 1.0),
    "hard": ("superpixel", 0.0),
    "soft": ("pixel", 1.0),
    "pixel": ("pixel", 0.0),
}


def small_training() -> TrainingConfig:
    """A network and a training for a CPU: about ten minutes a run on two idle cores."""
    grid = GridConfig(grids=(24, 16, 12, 8, 6), ranges_px=((1, 32), (16, 64), (32, 96), (64, 160), (96, 256)))
    solo = SoloConfig(
        backbone="resnet18", image_size=192, pyramid_channels=64, head_channels=64, mask_channels=64,
        head_depth=2, grid=grid,
    )  # fmt: skip
    return TrainingConfig(
        steps=600,
        batch_size=4,
        snapshots=1,
        solo=solo,
        optimiser=OptimiserConfig(kind="adamw", learning_rate=1e-3, warmup_steps=50, schedule="cosine"),
        # A short training cannot learn objects of many sizes.
        samples=SampleConfig(
            augmentation=AugmentationConfig(scales=(0.8, 1.2), copy_paste=0.0),
            superpixels=SuperpixelConfig(num_segments=300),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class ComparisonArguments(Bounded):
    """Images, coarse masks and trainings of a comparison."""

    data: Path
    """Folder of images/*.jpg and masks/*.png, id masks in which 0 is background (PennFudan)."""
    output: Path
    """Folder for the runs and results.json."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the split, the coarse masks, the initial weights and the order; every loss runs with each."""
    num_train: Count = 130
    """Images to train on; the metrics are measured on the others."""
    block_px: Count = 16
    """Side in image pixels of the blocks that training masks are quantised to."""
    max_shift_px: CountOrZero = 8
    """Largest growth or shrinkage of a training mask in pixels, drawn evenly in both directions."""
    growth_px: int = 0
    """Growth in pixels of all training masks in addition, negative to shrink them: an error that does not
    average out."""
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(default_factory=small_training)
    """All other settings of the trainings."""
    run: Annotated[RunSettings, tyro.conf.arg(name="")] = field(
        default_factory=lambda: RunSettings(processes=0, checkpoint_every=200)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds:
            raise ConfigurationError("seeds needs at least one value")


@dataclass(frozen=True, kw_only=True)
class CompareArguments(ComparisonArguments):
    """Compare mask losses on equal images, coarse masks, initial weights and steps.

    Training masks are grown or shrunk at random and quantised to blocks; metrics are measured on clean masks.
    A run that --output holds complete is not repeated, and one that was stopped continues from its last
    checkpoint. jobs/studies/compare_rounds.py compares losses of the next round.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    losses: tuple[LossName, ...] = ("superpixel", "pixel")
    """Losses to compare: superpixel (hard and soft part), hard (the hard part alone), soft (pixels and the
    soft part), pixel (pixels alone)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.losses:
            raise ConfigurationError("losses needs at least one value")


def main(arguments: CompareArguments) -> None:
    truths = list(read_ground_truth(str(arguments.data)))
    results: Results = {name: [] for name in arguments.losses}
    for seed in arguments.seeds:
        trained, held_out = split_images(truths, seed, arguments)
        version = store_coarse_masks(MemoryObjects(), trained, arguments, seed)
        for name in arguments.losses:
            mask_term, soft_weight = _OBJECTIVES[name]
            config = seeded(arguments.training, seed)
            objective = replace(config.objective, mask_term=mask_term, soft_weight=soft_weight)
            run = make_run(f"seed-{seed}-{name}", replace(config, objective=objective), held_out, arguments)
            metrics = train_and_measure(run, version, arguments)
            results[name].append(metrics)
            print(f"seed {seed}, {name}: {_formatted(metrics)}", flush=True)
    write_results(results, arguments)
    print_means(results)


def split_images(
    truths: Sequence[AnnotatedImage], seed: int, arguments: ComparisonArguments
) -> tuple[list[AnnotatedImage], list[AnnotatedImage]]:
    """Images to train on and images to measure on, drawn at random."""
    if len(truths) <= arguments.num_train:
        raise CorpusError(f"{arguments.data} has {len(truths)} images: give a lower --num-train")
    order = np.random.default_rng(seed).permutation(len(truths))
    trained, held_out = order[: arguments.num_train], order[arguments.num_train :]
    return [truths[i] for i in trained], [truths[i] for i in held_out]


def write_results(results: Results, arguments: ComparisonArguments) -> None:
    """Write arguments and metrics to results.json."""
    content = json.dumps({"arguments": asdict(arguments), "results": results}, indent=1, default=str)
    LocalObjects(arguments.output).write("results.json", content.encode())


def store_coarse_masks(
    objects: ObjectStore, truths: Sequence[AnnotatedImage], arguments: ComparisonArguments, seed: int
) -> Version:
    """Store the ground truth's masks, made coarse, as a version of labels."""
    outcomes = []
    for number, truth in enumerate(truths):
        rng = np.random.default_rng([seed, number])
        coarse = [coarsen(mask, arguments, rng) for mask in truth.masks()]
        masks = np.stack(coarse) if coarse else np.zeros((0, *truth.size), bool)
        instances = make_instances(masks, np.ones(len(masks), np.float32), truth.size, "coarse")
        height, width = truth.size
        outcomes.append(
            Outcome(
                record=record_of(truth),
                status=Status.LABELLED,
                height=height,
                width=width,
                instances=instances,
            )
        )
    names = ("num_train", "block_px", "max_shift_px", "growth_px")
    settings = {name: getattr(arguments, name) for name in names} | {"seed": seed}
    return store_version(objects, outcomes, settings, None)


def store_version(
    objects: ObjectStore, outcomes: Sequence[Outcome], settings: dict[str, Any], parent: Version | None
) -> Version:
    """Store a finished version of one shard, in the round after its parent's."""
    info = VersionInfo(
        round=0 if parent is None else parent.info.round + 1,
        configuration=settings,
        weights_digest="",
        parent=None if parent is None else parent.name,
        code_version="",
        device="cpu",
    )
    version = PseudoLabelStore(objects).begin(info, "resume")
    records = tuple(outcome.record for outcome in outcomes)
    version.record_plan(ShardPlan(index=0, records=records, is_last=True))
    version.commit(0, outcomes)
    version.finish()
    return version


def record_of(truth: AnnotatedImage) -> ImageRecord:
    """The record of the photograph that belongs to an id mask."""
    return ImageRecord(image_id=truth.path, path=str(Path(truth.path).with_suffix(".jpg")))


def coarsen(
    mask: NDArray[np.bool_], arguments: ComparisonArguments, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Grow or shrink a mask (H, W) at random, then quantise it to the blocks that it covers at least by half.

    >>> blocks = ComparisonArguments(data=Path("data"), output=Path("out"), block_px=2, max_shift_px=0)
    >>> coarse = coarsen(np.tri(4, dtype=bool), blocks, np.random.default_rng(0))
    >>> coarse.astype(int).tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    """
    block_px, max_shift_px = arguments.block_px, arguments.max_shift_px
    shift_px = arguments.growth_px + int(rng.integers(-max_shift_px, max_shift_px + 1))
    inside = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    outside = ndimage.distance_transform_edt(~mask)
    moved = inside > -shift_px if shift_px < 0 else outside <= shift_px
    height, width = mask.shape
    padded = np.pad(moved, ((0, -height % block_px), (0, -width % block_px)))
    blocks = padded.reshape(padded.shape[0] // block_px, block_px, padded.shape[1] // block_px, block_px)
    covered = blocks.mean(axis=(1, 3)) >= 0.5
    coarse: NDArray[np.bool_] = covered.repeat(block_px, axis=0).repeat(block_px, axis=1)[:height, :width]
    return coarse


def seeded(training: TrainingConfig, seed: int) -> TrainingConfig:
    """The training with this seed for order, augmentation and initial weights."""
    return replace(training, seed=seed, solo=replace(training.solo, seed=seed))


def make_run(
    name: str, config: TrainingConfig, held_out: Sequence[AnnotatedImage], arguments: ComparisonArguments
) -> Run:
    """A run below --output that is validated on clean masks."""
    from engine.solo.run import Run
    from engine.solo.validation import plan_validation

    records = [record_of(truth) for truth in held_out]
    return Run(
        output=LocalObjects(arguments.output / name),
        config=config,
        settings=arguments.run,
        context=WorkerContext(),
        report=lambda step, metrics: print(f"{name}, step {step}: {_formatted(metrics)}", flush=True),
        validation=plan_validation(open_images(arguments), records, held_out, config.samples.decoding),
    )


def open_images(arguments: ComparisonArguments) -> FolderCorpus:
    """The corpus of photographs."""
    return FolderCorpus.open(str(arguments.data / "images"))


def train_and_measure(run: Run, version: Version, arguments: ComparisonArguments) -> dict[str, float]:
    """Train one run, unless it is complete; returns its last validation metrics."""
    from engine.solo.run import train_solo

    init_from = "nothing" if run.init_from is None else "the round before"
    labels = {**labels_fingerprint(version), "init_from": init_from}
    if not create_output(run.output, describe_training(run.config, labels), resume=True):
        images = list_images(
            version,
            run.config.selection,
            run.config.keep_empty,
            ignore_above_score=run.config.ignore_above_score,
        )
        cache = arguments.output / "cache"
        train_solo(run, SampleMaker(images, open_images(arguments), cache, run.config.sample_task))
    measured = [line for line in read_metrics(run.output) if "mask_AP" in line]
    return {name: value for name, value in measured[-1].items() if name != "step"}


def print_means(results: Results) -> None:
    """Print a Markdown table of the mean, minimum and maximum over the seeds, in percent."""
    names = list(next(iter(results.values()))[0])
    print("| loss | " + " | ".join(names) + " |")
    print("|" + "---|" * (len(names) + 1))
    for loss, rows in results.items():
        cells = []
        for name in names:
            values = [100 * row[name] for row in rows]
            cells.append(f"{statistics.fmean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        print(f"| {loss} | " + " | ".join(cells) + " |")


def _formatted(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


if __name__ == "__main__":
    run_job(CompareArguments, main)
