#!/usr/bin/env python
"""Time labelling: its stages, the encoder alone, and the whole pipeline against what they allow."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from threading import Barrier
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from engine import __version__
from engine.corpora import Corpus, CorpusKind, open_corpus
from engine.corpora.repeated import RepeatedCorpus
from engine.encoders import Encoder, load_encoder
from engine.errors import ConfigurationError
from engine.labelling.config import LabellingConfig
from engine.objects.object_store import open_objects
from engine.stopwatch import stage, timed_stages
from engine.store.planning import check_has_images
from engine.store.pseudo_labels import PseudoLabelStore
from engine.store.schema import encode_shard
from engine.store.version_info import VersionInfo
from engine.types import Chunk, Outcome, ShardPlan
from jobs.cli.console import run_job
from jobs.cli.flags import ClusterFlags
from jobs.cli.output import check_output, write_output

# The steady part of a run leaves out so many chunks at either end, while the pipeline fills and empties.
_EDGE_CHUNKS = 5
_READY_TIMEOUT_S = 300
# The store that the pipeline writes is thrown away, so nobody asks what it was made from.
_VERSION = VersionInfo(
    round=0, configuration={}, weights_digest="", parent=None, code_version=__version__, device=""
)
_BATCH_SIZES = {"cpu": (1, 2, 4, 8, 16), "cuda": (8, 16, 32, 64, 128)}
# Seconds an image for pseudo-labels, as their authors or others published them, on their machines.
_PUBLISHED = {
    "ProMerge": "1.85",
    "MaskCut": "4.7 to 13.5",
    "UnSAM": "5.27",
    "SAM 2, automatic": "3.24",
    "UniAP": "0.045",
}


@dataclass(frozen=True, kw_only=True)
class BenchmarkArguments:
    """Time labelling: how long its stages take, the encoder alone, and the Ray pipeline end to end.

    Stages are timed in as many processes of one thread as there are cores, all at work at once, before and
    after the pipeline, on images from all over those that pass it. Their sum over the cores is the ideal; on
    a GPU the encoder alone, at its best batch size, is. The pipeline's rate is that of its steady part, from
    the 5th to the last but 5th chunk, with start-up apart.
    """

    corpus: str = "skimage:"
    """Images to time on: a folder, s3://bucket/prefix or skimage:."""
    corpus_kind: CorpusKind = "folder"
    """How the corpus is laid out."""
    num_images: int = 300
    """Images that pass the pipeline; at least 11 chunks, so that it has a steady part."""
    stage_images: int = 32
    """Images on which each process times the stages."""
    encoder_seconds: float = 5.0
    """How long the encoder alone is timed at each batch size."""
    chunk_size: int = 8
    """Images that travel and are computed together."""
    parts: tuple[Literal["stages", "encoder", "pipeline"], ...] = ("stages", "encoder", "pipeline")
    """What is measured."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the encoder runs."""
    output: str | None = None
    """Where to write the figures as JSON: a file or s3://bucket/key."""
    labelling: Annotated[LabellingConfig, tyro.conf.arg(name="")] = field(default_factory=LabellingConfig)

    def __post_init__(self) -> None:
        check_output("--output", self.output)
        self.labelling.check_has_features()
        if self.stage_images < 1 or self.chunk_size < 1:
            raise ConfigurationError("--stage-images and --chunk-size are at least 1")
        if "pipeline" in self.parts and self.num_images <= 2 * _EDGE_CHUNKS * self.chunk_size:
            raise ConfigurationError(
                f"--num-images {self.num_images} has no steady part at --chunk-size {self.chunk_size}: "
                f"give more than {2 * _EDGE_CHUNKS * self.chunk_size}"
            )


@dataclass(frozen=True, kw_only=True)
class StageFigures:
    """What one process measured: seconds by stage over `images`, and its peak memory."""

    seconds: dict[str, float]
    images: int
    peak_mib: float


@dataclass(frozen=True, kw_only=True)
class PipelineFigures:
    """`start_up_s` ends with the first chunk; `images_per_s` is of the steady part."""

    images: int
    start_up_s: float
    total_s: float
    images_per_s: float


def main(arguments: BenchmarkArguments) -> None:
    check_has_images(open_corpus(arguments.corpus, arguments.corpus_kind))
    encoder = load_encoder(arguments.labelling.encoder, arguments.device)
    cores = len(os.sched_getaffinity(0))
    figures: dict[str, Any] = {"cores": cores, "published_s_per_image": _PUBLISHED}
    stages: list[StageFigures] = []
    if "stages" in arguments.parts:
        stages += time_stages_on_all_cores(encoder.image_size, cores, arguments)
    if "encoder" in arguments.parts:
        figures["encoder_images_per_s"] = time_encoder(arguments)
    if "pipeline" in arguments.parts:
        figures["pipeline"] = asdict(time_pipeline(encoder, arguments))
        # A machine does not stay equally fast: the pipeline is compared with what was before and after it.
        if stages:
            stages += time_stages_on_all_cores(encoder.image_size, cores, arguments)
    if stages:
        figures["stages"] = summarise_stages(stages)
    figures["ratios"] = compare_with_ideal(figures, arguments.device)
    print_figures(figures)
    write_output(arguments.output, json.dumps(figures, indent=2) + "\n")


def time_stages_on_all_cores(
    image_size: tuple[int, int], cores: int, arguments: BenchmarkArguments
) -> list[StageFigures]:
    """The stages in one process a core, all at work between the same two moments."""
    context = multiprocessing.get_context("spawn")
    # Ray gives its actors one thread of BLAS, too.
    with context.Manager() as manager, context.Pool(cores, threadpool_limits, (1,)) as pool:
        all_ready = manager.Barrier(cores)
        shares = [(arguments, image_size, slice(core, None, cores), all_ready) for core in range(cores)]
        return pool.starmap(time_stages, shares, chunksize=1)


def time_stages(
    arguments: BenchmarkArguments, image_size: tuple[int, int], share: slice, all_ready: Barrier
) -> StageFigures:
    """Label this share of the images as a worker of the pipeline does, but without reading ahead."""
    from actors.workers import Worker

    corpus = _corpus(arguments, max(arguments.num_images, arguments.stage_images * share.step))
    worker = Worker(corpus, arguments.labelling, image_size, arguments.device)
    worker.start()

    def label(chunk: Chunk) -> list[Outcome]:
        return worker.label_crops(worker.read(chunk))

    step = max(1, arguments.num_images // (arguments.stage_images * share.step))
    spread = islice(corpus.records(), 0, None, step)
    records = tuple(islice(spread, share.start, arguments.stage_images * share.step, share.step))
    chunks = list(ShardPlan(index=0, records=records, is_last=True).chunks(arguments.chunk_size))
    # The first image pays for compiled code and memory that later ones find ready.
    label(replace(chunks[0], records=records[:1]))
    all_ready.wait(_READY_TIMEOUT_S)
    with timed_stages() as seconds:
        outcomes = [outcome for chunk in chunks for outcome in label(chunk)]
        with stage("write"):
            encode_shard("benchmark", 0, outcomes)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return StageFigures(seconds=seconds, images=len(outcomes), peak_mib=peak_kib / 1024)


def summarise_stages(processes: Sequence[StageFigures]) -> dict[str, Any]:
    """Milliseconds an image and shares by stage, their sum, and the largest peak memory of a process."""
    images = sum(figures.images for figures in processes)
    seconds = {
        name: sum(figures.seconds.get(name, 0.0) for figures in processes) / images
        for name in processes[0].seconds
    }
    total = sum(seconds.values())
    return {
        "images": images,
        "ms_per_image": {name: 1e3 * value for name, value in seconds.items()},
        "share": {name: value / total for name, value in seconds.items()},
        "sum_ms": 1e3 * total,
        "peak_mib": max(figures.peak_mib for figures in processes),
    }


def time_encoder(arguments: BenchmarkArguments) -> dict[str, float]:
    """Images a second of the encoder alone, with all threads, by the number of images in a batch."""
    rates = {}
    for batch_size in _BATCH_SIZES[arguments.device]:
        # One for each size: an encoder fills its batches up.
        config = replace(arguments.labelling.encoder, batch_size=batch_size)
        encoder = load_encoder(config, arguments.device)
        image = np.random.default_rng(0).integers(0, 256, (*encoder.image_size, 3), np.uint8)
        batch = [image] * batch_size
        encoder.encode(batch).cpu()
        start, batches = time.perf_counter(), 0
        while time.perf_counter() - start < arguments.encoder_seconds:
            encoder.encode(batch).cpu()
            batches += 1
        rates[str(batch_size)] = batches * batch_size / (time.perf_counter() - start)
    return rates


def time_pipeline(encoder: Encoder, arguments: BenchmarkArguments) -> PipelineFigures:
    """Label into a store that is thrown away, on a local Ray, noting when each chunk arrives."""
    from actors.pipeline import LabellingRun, Progress, run_labelling
    from actors.pool import size_pool
    from actors.storage import Work
    from jobs.cli.cluster import connect, leave_cluster

    joined = connect(ClusterFlags(device=arguments.device, address="local"))
    size = size_pool(joined.cpus, joined.gpus)
    arrivals: list[tuple[float, int]] = []

    def note(progress: Progress) -> None:
        if progress.images > (arrivals[-1][1] if arrivals else 0):
            arrivals.append((time.perf_counter() - start, progress.images))

    with tempfile.TemporaryDirectory() as folder:
        work = Work(
            corpus=_corpus(arguments, arguments.num_images),
            version=PseudoLabelStore(open_objects(folder)).begin(_VERSION, "resume"),
            shard_size=1000,
            chunk_size=arguments.chunk_size,
        )
        run = LabellingRun(
            work=work, config=arguments.labelling, image_size=encoder.image_size, device=arguments.device
        )
        start = time.perf_counter()
        run_labelling(run, size, note)
        total_s = time.perf_counter() - start
    leave_cluster()
    return summarise_arrivals(arrivals, total_s)


def summarise_arrivals(arrivals: Sequence[tuple[float, int]], total_s: float) -> PipelineFigures:
    """The steady rate from (seconds, images so far) at the arrival of each chunk.

    >>> figures = summarise_arrivals([(10.0 + i, 2 * (i + 1)) for i in range(12)], 22.0)
    >>> figures.start_up_s, figures.images_per_s
    (10.0, 2.0)
    """
    (first_s, first), (last_s, last) = arrivals[_EDGE_CHUNKS - 1], arrivals[-_EDGE_CHUNKS - 1]
    return PipelineFigures(
        images=arrivals[-1][1],
        start_up_s=arrivals[0][0],
        total_s=total_s,
        images_per_s=(last - first) / (last_s - first_s),
    )


def compare_with_ideal(figures: dict[str, Any], device: str) -> dict[str, float]:
    """The pipeline's steady rate over what its parts allow, where both were measured."""
    if "pipeline" not in figures:
        return {}
    steady = figures["pipeline"]["images_per_s"]
    ratios = {}
    if "stages" in figures and device == "cpu":
        ratios["of ideal"] = steady * figures["stages"]["sum_ms"] / 1e3 / figures["cores"]
    if "encoder_images_per_s" in figures:
        ratios["of the encoder alone"] = steady / max(figures["encoder_images_per_s"].values())
    return ratios


def print_figures(figures: dict[str, Any]) -> None:
    """Tables for people; --output has the same for machines."""
    console = Console()
    if "stages" in figures:
        console.print(_stage_table(figures["stages"], figures["cores"]))
    summary = Table("measured", "")
    summary.columns[1].justify = "right"
    for batch_size, rate in figures.get("encoder_images_per_s", {}).items():
        summary.add_row(f"encoder alone, batches of {batch_size}", f"{rate:.2f} images/s")
    if "pipeline" in figures:
        pipeline = figures["pipeline"]
        summary.add_row("pipeline, start-up to the first chunk", f"{pipeline['start_up_s']:.1f} s")
        summary.add_row(f"pipeline, {pipeline['images']} images in all", f"{pipeline['total_s']:.1f} s")
        summary.add_row("pipeline, steady part", f"{pipeline['images_per_s']:.2f} images/s")
    for name, ratio in figures["ratios"].items():
        summary.add_row(f"pipeline, share {name}", f"{ratio:.2f}")
    console.print(summary)
    published = Table("published, on their machines", "s/image")
    published.columns[1].justify = "right"
    for name, seconds in figures["published_s_per_image"].items():
        published.add_row(name, seconds)
    console.print(published)


def _stage_table(stages: dict[str, Any], cores: int) -> Table:
    table = Table("stage", "ms/image", "share")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, milliseconds in stages["ms_per_image"].items():
        table.add_row(name, f"{milliseconds:.1f}", f"{stages['share'][name]:.0%}")
    table.add_section()
    table.add_row("sum, on one core", f"{stages['sum_ms']:.1f}", "")
    table.add_row(f"ideal, on {cores} cores", f"{stages['sum_ms'] / cores:.1f}", "")
    table.add_row("peak memory of a process", f"{stages['peak_mib']:.0f} MiB", "")
    return table


def _corpus(arguments: BenchmarkArguments, num_images: int) -> Corpus:
    return RepeatedCorpus(open_corpus(arguments.corpus, arguments.corpus_kind), num_images)


if __name__ == "__main__":
    run_job(BenchmarkArguments, main)
