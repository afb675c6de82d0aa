"""The labelling pipeline: a plan streams through pools of actors into a store.

Ray Data moves chunks between the pools; a row is one chunk, or a part of one where images have tiles, and
a block is one row, so that nothing is split or merged whatever the timing. The driver holds only run lengths:
it gathers the chunks of a shard and hands the full shard to a write task. The run has succeeded when the
committed shards are those of the plan.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from actors.reader import ChunkResult, Reader
from actors.storage import ChunkSource, Work, commit_shard
from actors.workers import PatchWorker
from engine.errors import ConfigurationError, RunError, TransientError
from engine.labelling import LabellingConfig
from engine.preparation import PreparationConfig
from engine.proposals.duplicates import merge_outcomes
from engine.store.runs import RunRecord
from engine.store.schema import ShardSummary
from engine.tiling import TilingConfig
from engine.types import ImageRecord, Outcome, Reason

if TYPE_CHECKING:
    from actors.networks import NetworkWorker

# Full shards that wait for their write at one time; more would let memory grow with a slow store.
_WRITES_IN_FLIGHT = 4
# Workers that share a GPU at most: each holds a network and its own share of the memory.
_WORKERS_ON_A_GPU = 8
# A write that a server refuses for a passing reason is tried again this often, by Ray, on any node.
_WRITE_RETRIES = 5


@dataclass(frozen=True, kw_only=True)
class PoolSizes:
    """How many actors each stage has, the CPUs that Ray reserves for each of them, and each worker's GPUs."""

    readers: int
    workers: int
    cpus_each: float
    gpus_each: float

    @property
    def total_cpus(self) -> float:
        return self.cpus_each * (self.readers + self.workers)


def size_pools(num_cpus: float, num_gpus: float) -> PoolSizes:
    """Pools that fill a cluster and never exceed it: Ray waits for ever, in silence, for CPUs it has not.

    Without GPUs there is one worker a core. Up to 8 share a GPU, as far as there are cores for them: while
    some find proposals and pack masks on the CPU, it has work from others. On small machines the stages share
    the CPUs: each actor reserves a fraction, and the system's scheduler does the rest. Raises
    ConfigurationError for less than one CPU.

    >>> size_pools(2, 0).total_cpus <= 2, size_pools(64, 8).workers
    (True, 32)
    """
    whole_cpus, whole_gpus = math.floor(num_cpus), math.floor(num_gpus)
    if whole_cpus < 1:
        raise ConfigurationError(f"the cluster has {num_cpus} free CPUs; labelling needs at least one")
    readers = max(1, whole_cpus // 8)
    workers, each_gpu = whole_cpus, 1
    if whole_gpus > 0:
        # A power of two, whose share of a GPU Ray counts exactly.
        while each_gpu < _WORKERS_ON_A_GPU and 2 * each_gpu * whole_gpus <= whole_cpus - readers:
            each_gpu *= 2
        workers = each_gpu * whole_gpus
    # Rounded down to what Ray can count, with a little left for the tasks that plan and write.
    cpus_each = min(1.0, math.floor(0.9 * whole_cpus / (readers + workers) * 100) / 100)
    return PoolSizes(
        readers=readers,
        workers=workers,
        cpus_each=cpus_each,
        gpus_each=1.0 / each_gpu if whole_gpus > 0 else 0.0,
    )


@dataclass(frozen=True, kw_only=True)
class LabellingRun:
    """What is to be labelled, how, and on which device; `image_size` is the encoder's (height, width), or the
    trained network's."""

    work: Work
    config: LabellingConfig
    image_size: tuple[int, int]
    device: str


@dataclass
class Progress:
    """What a run has done so far; `images` counts those labelled in this run, not in earlier ones."""

    images: int = 0
    instances: int = 0
    shards: int = 0
    reasons: Counter[Reason] = field(default_factory=Counter)

    def add(self, outcomes: tuple[Outcome, ...]) -> None:
        self.images += len(outcomes)
        self.instances += sum(len(outcome.instances or ()) for outcome in outcomes)
        self.reasons.update(outcome.reason for outcome in outcomes if outcome.reason is not None)


def run_labelling(
    run: LabellingRun, pools: PoolSizes, on_progress: Callable[[Progress], None]
) -> list[ShardSummary]:
    """Label what the version lacks, and finish it; returns the summaries of all its shards.

    `on_progress` is called after every chunk. How fast it went is recorded beside the labels. Raises
    RunError where shards are missing in the end.
    """
    start = time.monotonic()
    committed = run.work.version.committed()
    progress = Progress()
    commit = ray.remote(commit_shard).options(
        num_cpus=0, max_retries=_WRITE_RETRIES, retry_exceptions=[TransientError]
    )
    writes: list[ray.ObjectRef[None]] = []
    dataset = _dataset(run, pools, committed)
    for shard, outcomes in _full_shards(dataset, run.config.tiling, progress, on_progress):
        writes.append(commit.remote(run.work.version, shard, outcomes))
        while len(writes) >= _WRITES_IN_FLIGHT:
            done, writes = ray.wait(writes)
            _count_written(done, progress, on_progress)
    _count_written(writes, progress, on_progress)
    planned = {plan.index for plan in run.work.version.plans()}
    missing = planned - run.work.version.committed()
    if missing:
        raise RunError(
            f"{len(missing)} of {len(planned)} shards are missing, the first is {min(missing)}; "
            "run the same command again"
        )
    summaries = run.work.version.finish()
    if progress.images > 0:
        run.work.version.record_run(
            RunRecord(
                images=progress.images,
                seconds=round(time.monotonic() - start, 1),
                device=run.device,
                workers={name: getattr(pools, name) for name in ("readers", "workers")},
            )
        )
    return summaries


def _count_written(
    writes: list[ray.ObjectRef[None]], progress: Progress, on_progress: Callable[[Progress], None]
) -> None:
    ray.get(writes)
    progress.shards += len(writes)
    on_progress(progress)


def _full_shards(
    dataset: Dataset, tiling: TilingConfig, progress: Progress, on_progress: Callable[[Progress], None]
) -> Iterator[tuple[int, list[Outcome]]]:
    """Shards as their last chunk arrives, whatever the order in which chunks and their parts arrive."""
    parts: dict[tuple[int, int], dict[int, ChunkResult]] = {}
    gathered: dict[int, dict[int, tuple[Outcome, ...]]] = {}
    for row in dataset.iter_rows():
        result: ChunkResult = row["result"]
        chunk = result.chunk
        arrived = parts.setdefault((chunk.shard, chunk.index), {})
        arrived[result.part] = result
        if not is_whole_chunk(arrived):
            continue
        outcomes = merge_parts(parts.pop((chunk.shard, chunk.index)), tiling)
        progress.add(outcomes)
        on_progress(progress)
        chunks = gathered.setdefault(chunk.shard, {})
        chunks[chunk.index] = outcomes
        if len(chunks) == chunk.count:
            del gathered[chunk.shard]
            yield chunk.shard, [outcome for index in sorted(chunks) for outcome in chunks[index]]


def is_whole_chunk(parts: Mapping[int, ChunkResult]) -> bool:
    """Whether the last part of a chunk has arrived, and all before it."""
    return any(result.is_last and result.part == len(parts) - 1 for result in parts.values())


def merge_parts(parts: Mapping[int, ChunkResult], tiling: TilingConfig) -> tuple[Outcome, ...]:
    """One outcome for each image of a chunk, in the chunk's order, of those of its crops."""
    crops: dict[ImageRecord, list[Outcome]] = {}
    for part in sorted(parts):
        for outcome in parts[part].outcomes:
            crops.setdefault(outcome.record, []).append(outcome)
    return tuple(merge_outcomes(outcomes, tiling) for outcomes in crops.values())


def _dataset(run: LabellingRun, pools: PoolSizes, committed: frozenset[int]) -> Dataset:
    """The chunks of all shards that are not committed, read, encoded and labelled as they are consumed."""
    context = DataContext.get_current()
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    by_network = run.config.method == "solo"
    preparation = PreparationConfig(
        image_size=run.image_size,
        keeps_aspect=by_network,
        decoding=run.config.decoding,
        tiling=run.config.tiling,
    )
    chunks = ray.data.read_datasource(ChunkSource(run.work, committed), override_num_blocks=1, num_cpus=0)
    read = chunks.map_batches(
        Reader,
        fn_constructor_args=(run.work.corpus, preparation, run.work.chunk_size),
        compute=ActorPoolStrategy(size=pools.readers),
        num_cpus=pools.cpus_each,
        batch_size=1,
    )
    worker: type[PatchWorker | NetworkWorker] = PatchWorker
    if by_network:
        # timm, of which networks are made, takes seconds to import.
        from actors.networks import NetworkWorker

        worker = NetworkWorker
    labelled: Dataset = read.map_batches(
        worker,
        fn_constructor_args=(run.config, run.device),
        compute=ActorPoolStrategy(size=pools.workers),
        num_cpus=pools.cpus_each,
        num_gpus=pools.gpus_each,
        batch_size=1,
    )
    return labelled
