#!/usr/bin/env python
"""Measure superpixels against human segmentations."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from engine.bounds import Bounded, Count, NotNegative, Share
from engine.errors import ConfigurationError, CorpusError
from engine.evaluation.ground_truth import read_ground_truth, read_photograph, subsample
from engine.superpixels import METHODS, SuperpixelConfig, SuperpixelMethod, segment
from engine.superpixels.quality import (
    achievable_segmentation_accuracy,
    boundary_recall,
    clear_sides,
    contour_density,
    crossing_counts,
    undersegmentation_error,
)
from jobs.cli.console import run_job
from jobs.cli.output import check_output, write_output
from jobs.cli.progress import ProgressDisplay

Image = TypeVar("Image")
HEADINGS = ("boundary recall", "undersegmentation", "accuracy", "contour density")


@dataclass(frozen=True, kw_only=True)
class SuperpixelsArguments(Bounded):
    """Measure superpixels against human segmentations of BSDS500 (--data) and object masks of COCO (--coco).

    One process, one image after another; times are CPU times. Every metric is a mean over images; on BSDS500
    the metric of an image is its mean over the annotators.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    data: Path | None = None
    """BSDS500 folder: images/<split>/*.jpg beside groundTruth/<split>/*.mat."""
    split: str = "val"
    """Split of BSDS500. The defaults of --superpixels were chosen on train."""
    coco: Path | None = None
    """Folder in COCO layout: annotations/instances_<split>.json beside <split>/*.jpg."""
    methods: tuple[SuperpixelMethod, ...] = METHODS
    """Methods to compare."""
    counts: tuple[Count, ...] = (200, 600)
    """Segments per image, in place of --superpixels.num-segments."""
    limit: Count | None = None
    """Images per data set, spread evenly over it; all by default."""
    tolerance_px: NotNegative = 2.0
    """Distance in pixels within which a contour recalls a true one; also the width of the border around
    objects that the last column for COCO leaves out."""
    crossing_tolerance: Share = 0.1
    """A superpixel crosses an object's border if more than this share of it lies on either side."""
    superpixels: SuperpixelConfig = field(default_factory=SuperpixelConfig)
    """Settings of the methods."""
    output: str | None = None
    """JSON file of the results: a path or s3://bucket/key."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_output("--output", self.output)
        if self.data is None and self.coco is None:
            raise ConfigurationError("nothing to measure on: give --data, --coco or both")
        if not self.methods or not self.counts:
            raise ConfigurationError("--methods and --counts need at least one value each")


def main(config: SuperpixelsArguments) -> None:
    figures: dict[str, list[dict[str, float | int | str]]] = {}
    warm_up(config)
    if config.data is not None:
        figures["bsds500"] = measure_bsds(config.data, config)
        print_table(figures["bsds500"])
    if config.coco is not None:
        figures["coco"] = measure_coco(config.coco, config)
        print_table(figures["coco"])
    content = {"config": asdict(config), "figures": figures}
    write_output(config.output, json.dumps(content, indent=1, default=str) + "\n")


def warm_up(config: SuperpixelsArguments) -> None:
    """Compile the kernels, so that this is not timed."""
    for method in config.methods:
        segment(np.zeros((16, 24, 3), np.uint8), replace(config.superpixels, method=method, num_segments=4))


def measure_bsds(folder: Path, config: SuperpixelsArguments) -> list[dict[str, float | int | str]]:
    """Measure on BSDS500: one row per method and count."""
    measured: dict[tuple[SuperpixelMethod, int], list[dict[str, float]]] = {
        (method, count): [] for count in config.counts for method in config.methods
    }
    for image, truths in show_progress(read_bsds(folder, config)):
        for (method, count), rows in measured.items():
            labels, seconds = timed_segment(image, method, count, config)
            scores = {"segments": labels.max() + 1.0, "seconds": seconds}
            rows.append(scores | score_labels(labels, truths, config.tolerance_px))
    return [summarise_bsds(method, count, rows) for (method, count), rows in measured.items()]


def read_bsds(
    folder: Path, config: SuperpixelsArguments
) -> Iterator[tuple[NDArray[np.uint8], list[NDArray[np.int32]]]]:
    """Yield images (H, W, 3) and the segmentations (H, W) of their annotators."""
    paths = sorted((folder / "images" / config.split).glob("*.jpg"))
    if not paths:
        raise CorpusError(f"no images/{config.split}/*.jpg under {folder}; give a BSDS500 folder")
    for path in subsample(paths, config.limit):
        truths = read_segmentations(folder / "groundTruth" / config.split / f"{path.stem}.mat")
        yield read_photograph(path), truths


def read_segmentations(path: Path) -> list[NDArray[np.int32]]:
    """Labels (H, W) of each annotator in a .mat file of BSDS500. Raises CorpusError if it cannot be read."""
    try:
        annotators = loadmat(path)["groundTruth"][0]
        return [annotator["Segmentation"][0, 0].astype(np.int32) for annotator in annotators]
    except (OSError, KeyError, IndexError, TypeError, ValueError, NotImplementedError, MatReadError) as error:
        raise CorpusError(
            f"cannot read {path} as a ground truth of BSDS500: {error!r}; every image needs one"
        ) from error


def timed_segment(
    image: NDArray[np.uint8], method: SuperpixelMethod, count: int, config: SuperpixelsArguments
) -> tuple[NDArray[np.int32], float]:
    """Labels (H, W) and CPU seconds, which for slic and felzenszwalb include the search for the count."""
    settings = replace(config.superpixels, method=method, num_segments=count)
    start = time.process_time()
    labels = segment(image, settings)
    return labels, time.process_time() - start


def score_labels(
    labels: NDArray[np.int32], truths: list[NDArray[np.int32]], tolerance_px: float
) -> dict[str, float]:
    """Metrics by heading, means over the annotators."""
    scores = (
        statistics.fmean(boundary_recall(labels, truth, tolerance_px) for truth in truths),
        statistics.fmean(undersegmentation_error(labels, truth) for truth in truths),
        statistics.fmean(achievable_segmentation_accuracy(labels, truth) for truth in truths),
        contour_density(labels),
    )
    return dict(zip(HEADINGS, scores, strict=True))


def summarise_bsds(
    method: SuperpixelMethod, count: int, rows: list[dict[str, float]]
) -> dict[str, float | int | str]:
    """Means over the images, the range of counts, and median and maximum of the times."""
    counts, seconds = [int(row["segments"]) for row in rows], [row["seconds"] for row in rows]
    return {
        "BSDS500": method,
        "asked": count,
        "images": len(rows),
        "segments": statistics.fmean(counts),
        "fewest": min(counts),
        "most": max(counts),
        **{heading: statistics.fmean(row[heading] for row in rows) for heading in HEADINGS},
        "median CPU s": statistics.median(seconds),
        "longest CPU s": max(seconds),
    }


def measure_coco(folder: Path, config: SuperpixelsArguments) -> list[dict[str, float | int | str]]:
    """Count crossings of object borders in COCO, crowds left out: one row per method and count."""
    totals = {
        (method, count): np.zeros((2, 2), np.int64) for count in config.counts for method in config.methods
    }
    num_images = num_objects = 0
    if not folder.is_dir():
        raise CorpusError(f"--coco {folder} is no folder: give one with annotations/ beside its images")
    truths = [truth for truth in read_ground_truth(str(folder)) if truth.num_objects > 0]
    if not truths:
        raise CorpusError(f"no image with instances in {folder}; give a folder with annotated images")
    for truth in show_progress(subsample(truths, config.limit)):
        image, masks = read_photograph(folder / truth.path), truth.masks()
        num_images, num_objects = num_images + 1, num_objects + len(masks)
        sides = [[clear_sides(mask, border_px) for border_px in (0.0, config.tolerance_px)] for mask in masks]
        for (method, count), total in totals.items():
            labels, _ = timed_segment(image, method, count, config)
            for with_border, without_border in sides:
                total[0] += crossing_counts(labels, *with_border, config.crossing_tolerance)
                total[1] += crossing_counts(labels, *without_border, config.crossing_tolerance)
    return [
        {
            "COCO": method,
            "asked": count,
            "images": num_images,
            "objects": num_objects,
            "superpixels touching": int(total[0, 1]),
            "of them crossing": float(total[0, 0] / total[0, 1]),
            f"crossing, but for {config.tolerance_px:g} px": float(total[1, 0] / total[1, 1]),
        }
        for (method, count), total in totals.items()
    ]


def show_progress(images: Iterable[Image]) -> Iterator[Image]:
    """Yield the images, and show on stderr how many are done."""
    with ProgressDisplay(None, console=Console(stderr=True)) as display:
        for done, image in enumerate(images):
            display.show(done)
            yield image


def print_table(rows: list[dict[str, float | int | str]]) -> None:
    """Print a Markdown table; fractions have four digits."""
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        cells = (f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values())
        print("| " + " | ".join(cells) + " |", flush=True)
    print()


if __name__ == "__main__":
    run_job(SuperpixelsArguments, main)
