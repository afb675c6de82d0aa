#!/usr/bin/env python
"""Time labelling: its stages, the encoder alone, and the pipeline as a share of the ideal."""

from __future__ import annotations

import json
import multiprocessing
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
from engine.bounds import Bounded, Count, Positive
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

# Chunks at either end of a run, while the pipeline fills and drains, that the steady rate leaves out.
_EDGE_CHUNKS = 5
_READY_TIMEOUT_S = 300
# The store that the pipeline writes is temporary, so its version needs no description.
_VERSION = VersionInfo(
    round=0, configuration={}, weights_digest="", parent=None, code_version=__version__, device=""
)
_BATCH_SIZES = {"cpu": (1, 2, 4, 8, 16), "cuda": (8, 16, 32, 64, 128)}
# Published seconds per image for pseudo-labels, each on its authors' machine.
_PUBLISHED = {
    "ProMerge": "1.85",
    "MaskCut": "4.7 to 13.5",
    "UnSAM": "5.27",
    "SAM 2, automatic": "3.24",
    "UniAP": "0.045",
}


@dataclass(frozen=True, kw_only=True)
class BenchmarkArguments(Bounded):
    """Time labelling: its stages, the encoder alone, and the Ray pipeline from start to end.

    Stages are timed before and after the pipeline, in one single-threaded process per core, all running at
    once, on a sample of the pipeline's images. The ideal is the sum of the stages divided by the cores; on a
    GPU it is the rate of the encoder alone at its best batch size. The pipeline's rate is measured from its
    5th chunk to its 5th last one; its start-up time is reported separately.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    corpus: str = "skimage:"
    """Where the images are: a folder, s3://bucket/prefix, or skimage: for a few sample photographs."""
    corpus_kind: CorpusKind = "folder"
    """Layout of the corpus."""
    num_images: Count = 300
    """Images to send through the pipeline; more than 10 chunks. A smaller corpus is repeated."""
    stage_images: Count = 32
    """Images on which each process times the stages."""
    encoder_seconds: Positive = 5.0
    """Seconds for which the encoder alone is timed at each batch size."""
    chunk_size: Count = 8
    """Images that a worker gets and labels together."""
    parts: tuple[Literal["stages", "encoder", "pipeline"], ...] = ("stages", "encoder", "pipeline")
    """Parts of labelling to time."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the encoder."""
    output: str | None = None
    """JSON file of the results: a path or s3://bucket/key."""
    labelling: Annotated[LabellingConfig, tyro.conf.arg(name="")] = field(default_factory=LabellingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_output("--output", self.output)
        self.labelling.check_has_features()
        if "pipeline" in self.parts and self.num_images <= 2 * _EDGE_CHUNKS * self.chunk_size:
            raise ConfigurationError(
                f"--num-images {self.num_images} has no steady part at --chunk-size {self.chunk_size}: "
                f"give more than {2 * _EDGE_CHUNKS * self.chunk_size}"
            )


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """One process: seconds by stage, summed over `images`, and its peak memory in MiB."""

    seconds: dict[str, float]
    images: int
    peak_mib: float


@dataclass(frozen=True, kw_only=True)
class PipelineTimes:
    """`start_up_s` ends with the first chunk; `images_per_s` is the steady rate."""

    images: int
    start_up_s: float
    total_s: float
    images_per_s: float


def main(arguments: BenchmarkArguments) -> None:
    from jobs.cli.measuring import count_cores

    check_has_images(open_corpus(arguments.corpus, arguments.corpus_kind))
    encoder = load_encoder(arguments.labelling.encoder, arguments.device)
    cores = count_cores()
    results: dict[str, Any] = {"cores": cores, "published_s_per_image": _PUBLISHED}
    stages: list[StageTimes] = []
    if "stages" in arguments.parts:
        stages += time_stages_on_all_cores(encoder.image_size, cores, arguments)
    if "encoder" in arguments.parts:
        results["encoder_images_per_s"] = time_encoder(arguments)
    if "pipeline" in arguments.parts:
        results["pipeline"] = asdict(time_pipeline(encoder, arguments))
        # The speed of a machine drifts: the pipeline is compared with the stages before and after it.
        if stages:
            stages += time_stages_on_all_cores(encoder.image_size, cores, arguments)
    if stages:
        results["stages"] = summarise_stages(stages)
    results["ratios"] = compare_with_ideal(results, arguments.device)
    print_results(results)
    write_output(arguments.output, json.dumps(results, indent=2) + "\n")


def time_stages_on_all_cores(
    image_size: tuple[int, int], cores: int, arguments: BenchmarkArguments
) -> list[StageTimes]:
    """Time the stages in one process per core, all running at the same time."""
    context = multiprocessing.get_context("spawn")
    # One BLAS thread each, as in a Ray actor.
    with context.Manager() as manager, context.Pool(cores, threadpool_limits, (1,)) as pool:
        all_ready = manager.Barrier(cores)
        shares = [(arguments, image_size, slice(core, None, cores), all_ready) for core in range(cores)]
        return pool.starmap(time_stages, shares, chunksize=1)


def time_stages(
    arguments: BenchmarkArguments, image_size: tuple[int, int], share: slice, all_ready: Barrier
) -> StageTimes:
    """Label this share of the images as a worker of the pipeline does, but without read-ahead."""
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
    # Warm up: the first image loads compiled code and allocates memory.
    label(replace(chunks[0], records=records[:1]))
    all_ready.wait(_READY_TIMEOUT_S)
    with timed_stages() as seconds:
        outcomes = [outcome for chunk in chunks for outcome in label(chunk)]
        with stage("write"):
            encode_shard("benchmark", 0, outcomes)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return StageTimes(seconds=seconds, images=len(outcomes), peak_mib=peak_kib / 1024)


def summarise_stages(processes: Sequence[StageTimes]) -> dict[str, Any]:
    """Milliseconds per image and shares by stage, their sum, and the largest peak memory of a process."""
    images = sum(process.images for process in processes)
    seconds = {
        name: sum(process.seconds.get(name, 0.0) for process in processes) / images
        for name in processes[0].seconds
    }
    total = sum(seconds.values())
    return {
        "images": images,
        "ms_per_image": {name: 1e3 * value for name, value in seconds.items()},
        "share": {name: value / total for name, value in seconds.items()},
        "sum_ms": 1e3 * total,
        "peak_mib": max(process.peak_mib for process in processes),
    }


def time_encoder(arguments: BenchmarkArguments) -> dict[str, float]:
    """Images per second of the encoder alone, with all threads, by batch size."""
    rates = {}
    for batch_size in _BATCH_SIZES[arguments.device]:
        # An encoder pads every batch to its configured size, so each size needs its own.
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


def time_pipeline(encoder: Encoder, arguments: BenchmarkArguments) -> PipelineTimes:
    """Label into a temporary store on a local Ray, and record when each chunk arrives."""
    from actors.pipeline import LabellingRun, Progress, run_labelling
    from actors.pool import size_pool
    from actors.storage import Work
    from jobs.cli.cluster import connect, leave_cluster

    joined = connect(ClusterFlags(device=arguments.device, address="local"))
    size = size_pool(joined.cpus, joined.gpus)
    arrivals: list[tuple[float, int]] = []

    def record(progress: Progress) -> None:
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
        run_labelling(run, size, record)
        total_s = time.perf_counter() - start
    leave_cluster()
    return summarise_arrivals(arrivals, total_s)


def summarise_arrivals(arrivals: Sequence[tuple[float, int]], total_s: float) -> PipelineTimes:
    """Start-up and steady rate from (seconds, images so far) at the arrival of each chunk.

    >>> times = summarise_arrivals([(10.0 + i, 2 * (i + 1)) for i in range(12)], 22.0)
    >>> times.start_up_s, times.images_per_s
    (10.0, 2.0)
    """
    (first_s, first), (last_s, last) = arrivals[_EDGE_CHUNKS - 1], arrivals[-_EDGE_CHUNKS - 1]
    return PipelineTimes(
        images=arrivals[-1][1],
        start_up_s=arrivals[0][0],
        total_s=total_s,
        images_per_s=(last - first) / (last_s - first_s),
    )


def compare_with_ideal(results: dict[str, Any], device: str) -> dict[str, float]:
    """The pipeline's steady rate as a share of the ideal, for the parts that were measured."""
    if "pipeline" not in results:
        return {}
    steady = results["pipeline"]["images_per_s"]
    ratios = {}
    if "stages" in results and device == "cpu":
        ratios["of ideal"] = steady * results["stages"]["sum_ms"] / 1e3 / results["cores"]
    if "encoder_images_per_s" in results:
        ratios["of the encoder alone"] = steady / max(results["encoder_images_per_s"].values())
    return ratios


def print_results(results: dict[str, Any]) -> None:
    """Print the results as tables."""
    console = Console()
    if "stages" in results:
        console.print(_stage_table(results["stages"], results["cores"]))
    summary = Table("measured", "")
    summary.columns[1].justify = "right"
    for batch_size, rate in results.get("encoder_images_per_s", {}).items():
        summary.add_row(f"encoder alone, batches of {batch_size}", f"{rate:.2f} images/s")
    if "pipeline" in results:
        pipeline = results["pipeline"]
        summary.add_row("pipeline, start-up to the first chunk", f"{pipeline['start_up_s']:.1f} s")
        summary.add_row(f"pipeline, all {pipeline['images']} images", f"{pipeline['total_s']:.1f} s")
        summary.add_row("pipeline, steady rate", f"{pipeline['images_per_s']:.2f} images/s")
    for name, ratio in results["ratios"].items():
        summary.add_row(f"pipeline, share {name}", f"{ratio:.2f}")
    console.print(summary)
    published = Table("published, on other machines", "s/image")
    published.columns[1].justify = "right"
    for name, seconds in results["published_s_per_image"].items():
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
