#!/usr/bin/env python
"""Compare the backends of the dense CRF with pydensecrf on coarse masks of photographs."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from engine.bounds import Bounded, Count
from engine.errors import ConfigurationError, CorpusError
from engine.evaluation.ground_truth import read_ground_truth, read_photograph
from engine.masks.components import paired_ious, resize_masks
from engine.refine import CrfConfig, refine_masks
from jobs.cli.console import run_job
from jobs.cli.output import check_output, write_output

PATCH = 8  # pixels; the patch size of ViT-B/8, the grid of proposals
SHAPES = ("coarse", "grown", "shrunk", "blob")


@dataclass(frozen=True, kw_only=True)
class BenchmarkArguments(Bounded):
    """Compare a backend of the dense CRF with pydensecrf on coarse masks of photographs: agreement and speed.

    For each image, the backend and the reference refine the same masks in turn in this process, so that both
    are timed under the same load.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    coco: Path
    """Folder in COCO layout: annotations/instances_<split>.json beside <split>/*.jpg."""
    num_images: Count = 20
    """Images with instances, in the order of their ids."""
    masks_per_image: Count = 10
    """Masks refined together: coarse, grown and shrunk instances and blobs of one colour, in turn."""
    size: int = 480
    """Height and width of the resized images in pixels; a multiple of 8."""
    backend: Literal["numba", "torch"] = "numba"
    """Backend to compare with the reference."""
    device: str = "cpu"
    """Device of the torch backend: cpu, cuda or cuda:N."""
    threads: tuple[Count, ...] = (1, 2)
    """Thread counts of the numba backend; the reference always uses one thread."""
    output: str | None = None
    """JSON file of the results: a path or s3://bucket/key."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_output("--output", self.output)
        if not self.threads:
            raise ConfigurationError("threads needs at least one value")
        if self.size < PATCH or self.size % PATCH:
            raise ConfigurationError(f"size is a multiple of {PATCH} pixels, got {self.size}")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One image: IoUs between the masks of both, and seconds for one mask and for all, by thread count."""

    image: str
    ious: tuple[float, ...]
    reference_one_s: float
    reference_all_s: float
    one_s: dict[int, float]
    all_s: dict[int, float]


def main(config: BenchmarkArguments) -> None:
    comparisons = []
    warm_up(config)
    print_heading(config)
    for name, image, masks in read_images(config):
        comparisons.append(compare(name, image, masks, config))
        print_row(comparisons[-1], config)
    summary = summarise(comparisons, config.threads)
    print()
    for key, value in summary.items():
        print(f"{key:<42} {value:.4f}" if isinstance(value, float) else f"{key:<42} {value}")
    content = {"summary": summary, "images": [asdict(comparison) for comparison in comparisons]}
    write_output(config.output, json.dumps(content, indent=1) + "\n")


def read_images(config: BenchmarkArguments) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.bool_]]]:
    """Yield names, images (size, size, 3) and coarse masks (masks_per_image, size, size)."""
    truths = (truth for truth in read_ground_truth(str(config.coco)) if truth.num_objects > 0)
    for annotated in islice(truths, config.num_images):
        image = read_image(config.coco / annotated.path, config.size)
        instances = annotated.masks()
        instances = instances[np.argsort(-instances.sum(axis=(1, 2)), kind="stable")]
        grid = patches_of(resize_masks(instances, image.shape[:2]))
        coarse = coarse_masks(grid, image, config.masks_per_image, seed=annotated.coco_id)
        yield annotated.path, image, np.kron(coarse, np.ones((1, PATCH, PATCH), bool))


def read_image(path: Path, size: int) -> NDArray[np.uint8]:
    """Read and resize an image: uint8 (size, size, 3)."""
    image = Image.fromarray(read_photograph(path))
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def patches_of(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Patches (N, H / 8, W / 8) that masks (N, H, W) fill by more than half; masks without a patch go."""
    count, height, width = masks.shape
    grid = masks.reshape(count, height // PATCH, PATCH, width // PATCH, PATCH).mean(axis=(2, 4)) > 0.5
    return grid[grid.any(axis=(1, 2))]


def coarse_masks(
    instances: NDArray[np.bool_], image: NDArray[np.uint8], count: int, seed: int
) -> NDArray[np.bool_]:
    """Make `count` masks on the patch grid, cycling through shapes and instances; blobs without instances."""
    rng = np.random.default_rng(seed)
    masks = []
    for number in range(count):
        shape = SHAPES[number % len(SHAPES)] if len(instances) else "blob"
        if shape == "blob":
            masks.append(colour_blob(image, rng))
            continue
        mask = instances[number % len(instances)]
        if shape == "grown":
            mask = ndimage.binary_dilation(mask)
        if shape == "shrunk":
            eroded = ndimage.binary_erosion(mask)
            mask = eroded if eroded.any() else mask
        masks.append(mask)
    return np.array(masks)


def colour_blob(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Connected patches around a random one, of about its colour."""
    height, width = image.shape[0] // PATCH, image.shape[1] // PATCH
    colours = image.reshape(height, PATCH, width, PATCH, 3).mean(axis=(1, 3))
    row, column = rng.integers(height), rng.integers(width)
    distances = np.linalg.norm(colours - colours[row, column], axis=-1)
    labels, _ = ndimage.label(distances <= rng.uniform(20, 60))
    return labels == labels[row, column]


def warm_up(config: BenchmarkArguments) -> None:
    """Compile the kernels for the mask counts that will be timed."""
    image = np.zeros((PATCH, PATCH, 3), np.uint8)
    crf = CrfConfig(backend=config.backend)
    for count in {1, config.masks_per_image}:
        refine_masks(image, np.zeros((count, PATCH, PATCH), bool), crf, device=config.device)


def compare(
    name: str, image: NDArray[np.uint8], masks: NDArray[np.bool_], config: BenchmarkArguments
) -> Comparison:
    """Refine all masks, and the first alone, with both; the backend in turn with the reference."""
    crf, threads = CrfConfig(backend=config.backend), config.threads
    reference = replace(crf, backend="pydensecrf")

    def refine(some: NDArray[np.bool_], num_threads: int) -> NDArray[np.bool_]:
        return refine_masks(image, some, crf, num_threads=num_threads, device=config.device)

    all_s, one_s = dict.fromkeys(threads, 0.0), dict.fromkeys(threads, 0.0)
    refined, expected = masks, []
    reference_s = []
    for half in np.array_split(masks, 2):
        for count in threads:
            refined, seconds = timed(partial(refine, masks, count))
            all_s[count] += seconds / 2
            _, seconds = timed(partial(refine, masks[:1], count))
            one_s[count] += seconds / 2
        for mask in half:
            single, seconds = timed(lambda m=mask: refine_masks(image, m[None], reference))
            expected.append(single[0])
            reference_s.append(seconds)
    return Comparison(
        image=name,
        ious=tuple(paired_ious(refined, np.array(expected)).tolist()),
        reference_one_s=statistics.mean(reference_s),
        reference_all_s=sum(reference_s),
        one_s=one_s,
        all_s=all_s,
    )


def timed(call: Callable[[], NDArray[np.bool_]]) -> tuple[NDArray[np.bool_], float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def summarise(comparisons: list[Comparison], threads: tuple[int, ...]) -> dict[str, float | int]:
    """Agreement over all masks, and the speed-up over the reference: median and minimum over images."""
    if not comparisons:
        raise CorpusError("no image with instances found; give a folder with annotated images")
    ious = np.array([iou for comparison in comparisons for iou in comparison.ious])
    summary: dict[str, float | int] = {
        "masks": len(ious),
        "mean IoU with the reference": float(ious.mean()),
        "smallest IoU": float(ious.min()),
        "share of masks with IoU >= 0.99": float((ious >= 0.99).mean()),
    }
    for count in threads:
        for label, ratios in (
            ("all masks", [entry.reference_all_s / entry.all_s[count] for entry in comparisons]),
            ("one mask", [entry.reference_one_s / entry.one_s[count] for entry in comparisons]),
        ):
            summary[f"times faster, {label}, {count} thread(s), median"] = statistics.median(ratios)
            summary[f"times faster, {label}, {count} thread(s), least"] = min(ratios)
    return summary


def print_heading(config: BenchmarkArguments) -> None:
    columns = [f"{name} x{count}" for count in config.threads for name in ("all", "one")]
    print(
        f"{'image':<24}{'masks':>6}{'min IoU':>9}{'reference s':>13}" + "".join(f"{c:>16}" for c in columns)
    )


def print_row(entry: Comparison, config: BenchmarkArguments) -> None:
    cells = []
    for count in config.threads:
        cells.append(f"{entry.all_s[count]:.2f} s 1/{entry.reference_all_s / entry.all_s[count]:.1f}")
        cells.append(f"{entry.one_s[count]:.2f} s 1/{entry.reference_one_s / entry.one_s[count]:.1f}")
    start = f"{entry.image:<24}{len(entry.ious):>6}{min(entry.ious):>9.4f}{entry.reference_all_s:>13.2f}"
    print(start + "".join(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    run_job(BenchmarkArguments, main)
