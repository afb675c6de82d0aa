#!/usr/bin/env python
"""Train with the superpixel-guided loss and with others on coarsened masks, and measure on clean ones."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from numpy.typing import NDArray
from scipy import ndimage

from engine.corpora import FolderCorpus
from engine.errors import ConfigurationError, CorpusError
from engine.ground_truth import AnnotatedImage, read_ground_truth
from engine.labelling import make_instances
from engine.selection import SelectionConfig
from engine.solo.augmentation import AugmentationConfig
from engine.solo.config import GridConfig, SoloConfig
from engine.solo.samples import SampleConfig, SampleMaker, list_images
from engine.solo.training import RunSettings, TrainingConfig, begin_output
from engine.store.local import LocalObjects
from engine.store.objects import MemoryObjects
from engine.store.pseudo_labels import PseudoLabelStore, Version, VersionInfo
from engine.superpixels import SuperpixelConfig
from engine.training.distribution import Place
from engine.training.log import read_figures
from engine.training.schedule import OptimiserConfig
from engine.types import ImageRecord, Outcome, ShardPlan, Status
from jobs.console import run_job

LossName = Literal["superpixel", "hard", "soft", "pixel"]
# Names and what they mean; "soft" has pixels in the place of the hard loss, since it cannot stand alone.
_OBJECTIVES: dict[LossName, tuple[Literal["superpixel", "pixel"], float]] = {
    "superpixel": ("superpixel", 1.0),
    "hard": ("superpixel", 0.0),
    "soft": ("pixel", 1.0),
    "pixel": ("pixel", 0.0),
}


def _small_training() -> TrainingConfig:
    """A network and a budget for a CPU: about ten minutes a run on two idle cores."""
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
        # So short a training has no time for objects of many sizes.
        samples=SampleConfig(
            augmentation=AugmentationConfig(scales=(0.8, 1.2), copy_paste=0.0),
            superpixels=SuperpixelConfig(num_segments=300),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class CompareArguments:
    """Compare mask losses: equal images, coarse masks, first weights and steps; clean masks to measure on.

    Training masks are brought to blocks and grown or shrunk at random. A run that an output holds whole is
    not repeated, and one that was stopped goes on from its last checkpoint. Exit codes: 0 done, 1 failed, 2
    wrong use.
    """

    data: Path
    """A folder of images/*.jpg and masks/*.png, whose values are instances and 0 background (PennFudan)."""
    output: Path
    """Where the runs and results.json go."""
    losses: tuple[LossName, ...] = ("superpixel", "pixel")
    """What is compared: the whole loss, its hard part alone, its soft part beside pixels, pixels alone."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the split, the coarse masks, the first weights and the order; every loss runs with each."""
    num_train: int = 130
    """Images to train on; the others are measured on."""
    block_px: int = 16
    """Side of the blocks that training masks are brought to, in pixels of the image."""
    max_shift_px: int = 8
    """Training masks are grown or shrunk by up to so many pixels."""
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(default_factory=_small_training)
    """Everything else about the runs."""
    run: Annotated[RunSettings, tyro.conf.arg(name="")] = field(
        default_factory=lambda: RunSettings(processes=0, checkpoint_every=200)
    )

    def __post_init__(self) -> None:
        if not self.losses or not self.seeds:
            raise ConfigurationError("--losses and --seeds need at least one value each")
        for name in ("num_train", "block_px"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is at least 1, got {getattr(self, name)}")
        if self.max_shift_px < 0:
            raise ConfigurationError(f"max_shift_px must not be negative, got {self.max_shift_px}")


def main(arguments: CompareArguments) -> None:
    truths = list(read_ground_truth(str(arguments.data)))
    if len(truths) <= arguments.num_train:
        raise CorpusError(f"{arguments.data} has {len(truths)} images: give a lower --num-train")
    results: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.losses}
    for seed in arguments.seeds:
        order = np.random.default_rng(seed).permutation(len(truths))
        trained = [truths[i] for i in order[: arguments.num_train]]
        held_out = [truths[i] for i in order[arguments.num_train :]]
        version = store_coarse_masks(trained, arguments, seed)
        for name in arguments.losses:
            figures = train_and_measure(version, held_out, name, seed, arguments)
            results[name].append(figures)
            print(f"seed {seed}, {name}: {_shown(figures)}", flush=True)
    LocalObjects(arguments.output).write(
        "results.json",
        json.dumps({"arguments": asdict(arguments), "results": results}, indent=1, default=str).encode(),
    )
    print_means(results)


def store_coarse_masks(truths: Sequence[AnnotatedImage], arguments: CompareArguments, seed: int) -> Version:
    """A version of labels whose masks are the truth's, made coarse."""
    outcomes = []
    for number, truth in enumerate(truths):
        record = ImageRecord(image_id=truth.path, path=str(Path(truth.path).with_suffix(".jpg")))
        rng = np.random.default_rng([seed, number])
        masks = np.stack([coarsen(m, arguments.block_px, arguments.max_shift_px, rng) for m in truth.masks()])
        instances = make_instances(masks, np.ones(len(masks), np.float32), truth.size, "coarse")
        height, width = truth.size
        outcomes.append(
            Outcome(record=record, status=Status.LABELLED, height=height, width=width, instances=instances)
        )
    info = VersionInfo(
        round=0, configuration={}, weights_digest="", parent=None, code_version="", device="cpu"
    )
    version = PseudoLabelStore(MemoryObjects()).begin(info, "resume")
    records = tuple(outcome.record for outcome in outcomes)
    version.record_plan(ShardPlan(index=0, records=records, is_last=True))
    version.commit(0, outcomes)
    version.finish()
    return version


def coarsen(
    mask: NDArray[np.bool_], block_px: int, max_shift_px: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """A mask (H, W) grown or shrunk at random, then in blocks: those that it covers by half.

    >>> coarse = coarsen(np.tri(4, dtype=bool), 2, 0, np.random.default_rng(0))
    >>> coarse.astype(int).tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    """
    shift_px = int(rng.integers(-max_shift_px, max_shift_px + 1))
    inside = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    outside = ndimage.distance_transform_edt(~mask)
    moved = inside > -shift_px if shift_px < 0 else outside <= shift_px
    height, width = mask.shape
    padded = np.pad(moved, ((0, -height % block_px), (0, -width % block_px)))
    blocks = padded.reshape(padded.shape[0] // block_px, block_px, padded.shape[1] // block_px, block_px)
    by_half = blocks.mean(axis=(1, 3)) >= 0.5
    coarse: NDArray[np.bool_] = by_half.repeat(block_px, axis=0).repeat(block_px, axis=1)[:height, :width]
    return coarse


def train_and_measure(
    version: Version,
    held_out: Sequence[AnnotatedImage],
    name: LossName,
    seed: int,
    arguments: CompareArguments,
) -> dict[str, float]:
    """AP and AP50 on clean masks after one run."""
    from engine.solo.run import Run, train_solo
    from engine.solo.validation import plan_validation

    mask_term, soft_weight = _OBJECTIVES[name]
    training = arguments.training
    config = replace(
        training,
        seed=seed,
        solo=replace(training.solo, seed=seed),
        objective=replace(training.objective, mask_term=mask_term, soft_weight=soft_weight),
    )
    corpus = FolderCorpus.open(str(arguments.data / "images"))
    records = [
        ImageRecord(image_id=truth.path, path=str(Path(truth.path).with_suffix(".jpg"))) for truth in held_out
    ]
    output = LocalObjects(arguments.output / f"seed-{seed}-{name}")
    run = Run(
        output=output,
        config=config,
        settings=arguments.run,
        place=Place(),
        report=lambda step, figures: print(f"step {step}: {_shown(figures)}", flush=True),
        validation=plan_validation(corpus, records, held_out, config.samples.decoding),
    )
    labels = {"coarse": f"{arguments.num_train} images, {arguments.block_px}, {arguments.max_shift_px} px"}
    if not begin_output(output, config, labels, resume=True):
        maker = SampleMaker(
            list_images(version, SelectionConfig()), corpus, arguments.output / "cache", config.sample_task
        )
        train_solo(run, maker)
    measured = [line for line in read_figures(output) if "mask_AP" in line]
    return {name: value for name, value in measured[-1].items() if name != "step"}


def print_means(results: dict[str, list[dict[str, float]]]) -> None:
    """A Markdown table: mean, least and greatest over the seeds."""
    names = list(next(iter(results.values()))[0])
    print("| loss | " + " | ".join(names) + " |")
    print("|" + "---|" * (len(names) + 1))
    for loss, rows in results.items():
        cells = []
        for name in names:
            values = [100 * row[name] for row in rows]
            cells.append(f"{statistics.fmean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        print(f"| {loss} | " + " | ".join(cells) + " |")


def _shown(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


if __name__ == "__main__":
    run_job(CompareArguments, main)
