#!/usr/bin/env python
"""Time the stages of labelling, one process, one thread."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from engine.corpora import FolderCorpus
from engine.decoding import decode_image, resize_image
from engine.encoders import Encoder, load_encoder
from engine.errors import ConfigurationError, ImageError
from engine.labelling import LabellingConfig, make_instances, propose_masks, refine_proposals
from engine.masks import resize_masks
from engine.proposals.mask_filter import score_masks
from jobs.console import run_job

Result = TypeVar("Result")
# Proposing is timed at the descriptor's and at a ViT-B's feature size, on features of equal cosines.
_VIT_B_FEATURES = 768


@dataclass(frozen=True, kw_only=True)
class BenchmarkArguments:
    """Time the stages of labelling image by image, in one process, without Ray.

    Prints the median and the mean of each stage in milliseconds per image, and its share. `propose at 768` is
    the method on the same features, turned into 768 dimensions; it is not part of the sum.
    """

    corpus: str = "skimage:"
    """Images to time on: a folder, s3://bucket/prefix or skimage:."""
    num_images: int = 32
    """How many of them."""
    threads: int = 1
    """Threads of the encoder, of proposing and of the CRF."""
    output: Path | None = None
    """Where to write the figures as JSON."""
    labelling: Annotated[LabellingConfig, tyro.conf.arg(name="")] = field(default_factory=LabellingConfig)

    def __post_init__(self) -> None:
        if self.num_images < 1 or self.threads < 1:
            raise ConfigurationError("--num-images and --threads are at least 1")


class Stopwatch:
    """Seconds by stage, in the order in which stages first came."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def time(self, stage: str, call: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        result = call()
        self.seconds.setdefault(stage, []).append(time.perf_counter() - start)
        return result


def main(arguments: BenchmarkArguments) -> None:
    torch.set_num_threads(arguments.threads)
    corpus = FolderCorpus.open(arguments.corpus)
    encoder = load_encoder(arguments.labelling.encoder, "cpu", arguments.threads)
    files = []
    for record in islice(corpus.records(), arguments.num_images):
        try:
            files.append(corpus.read(record))
        except ImageError as error:
            print(f"left out {record.image_id!r}: {error}")
    if not files:
        raise ConfigurationError(f"no readable image in {corpus.uri}")
    # The first image pays for compiling and for memory that later ones find ready.
    time_stages(files[:1], encoder, arguments)
    figures = summarise(time_stages(files, encoder, arguments))
    Console().print(_table(figures))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({"images": len(files), "stages": figures}, indent=2) + "\n")


def time_stages(files: list[bytes], encoder: Encoder, arguments: BenchmarkArguments) -> Stopwatch:
    """Label each file step by step; the steps are those of engine.labelling."""
    config, watch = arguments.labelling, Stopwatch()
    rotation = _rotation(encoder.feature_size)
    for data in files:
        image = watch.time("decode", lambda data=data: decode_image(data, config.decoding))
        resized = watch.time("resize", lambda image=image: resize_image(image, encoder.image_size))
        features = watch.time("encode", lambda resized=resized: encoder.encode([resized]))[0]
        proposed = watch.time("propose", lambda features=features: propose_masks(features, config))
        wide = (features.float() @ rotation).half()
        watch.time("propose at 768", lambda wide=wide: propose_masks(wide, config))
        masks = proposed.masks
        scores = watch.time(
            "score", lambda features=features, masks=masks: score_masks(features, masks, config.mask_filter)
        )
        coarse = resize_masks(masks, encoder.image_size)
        if config.refine == "crf":
            coarse, scores = watch.time(
                "refine",
                lambda resized=resized, coarse=coarse, scores=scores: refine_proposals(
                    resized, coarse, scores, config, num_threads=arguments.threads
                ),
            )
        size = (image.shape[0], image.shape[1])
        watch.time(
            "resize masks, run lengths",
            lambda coarse=coarse, scores=scores, size=size: make_instances(
                coarse, scores, size, config.method
            ),
        )
    return watch


def summarise(watch: Stopwatch) -> dict[str, dict[str, float]]:
    """Milliseconds per image of each stage, and its share of the mean."""
    counted = {stage: statistics.mean(s) for stage, s in watch.seconds.items() if stage != "propose at 768"}
    total = sum(counted.values())
    return {
        stage: {
            "median_ms": 1e3 * statistics.median(seconds),
            "mean_ms": 1e3 * statistics.mean(seconds),
            "share": counted.get(stage, 0.0) / total,
        }
        for stage, seconds in watch.seconds.items()
    } | {"sum": {"median_ms": float("nan"), "mean_ms": 1e3 * total, "share": 1.0}}


def _rotation(feature_size: int) -> torch.Tensor:
    """Orthonormal rows (C, 768): features times it keep their cosines."""
    size = max(_VIT_B_FEATURES, feature_size)
    rows: NDArray[np.float64] = np.linalg.qr(np.random.default_rng(0).standard_normal((size, feature_size)))[
        0
    ]
    return torch.as_tensor(rows.T, dtype=torch.float32)


def _table(figures: dict[str, dict[str, float]]) -> Table:
    table = Table("stage", "median ms/image", "mean ms/image", "share")
    for column in table.columns[1:]:
        column.justify = "right"
    for stage, row in figures.items():
        median = "" if np.isnan(row["median_ms"]) else f"{row['median_ms']:.1f}"
        share = f"{row['share']:.0%}" if row["share"] > 0 else ""
        table.add_row(stage, median, f"{row['mean_ms']:.1f}", share)
    return table


if __name__ == "__main__":
    run_job(BenchmarkArguments, main)
