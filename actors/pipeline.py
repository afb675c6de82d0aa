"""The labelling pipeline: a plan streams through a pool of workers into a store.

The driver holds only run lengths: it gathers the rows of a shard and hands the full shard to a write task.
The run has succeeded when the committed shards are those of the plan.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import ray
from ray.exceptions import RayError, RayTaskError

from actors.pool import MAX_IN_FLIGHT, PoolSize, WorkerPool
from actors.read_ahead import read_ahead
from actors.storage import Work, commit_shard
from actors.workers import Worker
from engine.errors import RunError, TransientError
from engine.labelling.config import LabellingConfig
from engine.store.runs import RunRecord
from engine.store.schema import ShardSummary
from engine.types import Chunk, Outcome, Reason, ShardPlan

# Shards that are listed and planned before their images are asked for.
_PLANS_AHEAD = 2
# Full shards that wait for their write at one time; more would let memory grow with a slow store.
_WRITES_IN_FLIGHT = 4
# A write that a server refuses for a passing reason is tried again this often, by Ray, on any node.
_WRITE_RETRIES = 5


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

    def add(self, outcomes: list[Outcome]) -> None:
        self.images += len(outcomes)
        self.instances += sum(len(outcome.instances or ()) for outcome in outcomes)
        self.reasons.update(outcome.reason for outcome in outcomes if outcome.reason is not None)


def run_labelling(
    run: LabellingRun, size: PoolSize, on_progress: Callable[[Progress], None]
) -> list[ShardSummary]:
    """Label what the version lacks, and finish it; returns the summaries of all its shards.

    `on_progress` is called after every chunk, and at least every few seconds. How fast it went is recorded
    beside the labels. Raises RunError where shards are missing in the end.
    """
    start = time.monotonic()
    version = run.work.version
    progress = Progress()
    commit = ray.remote(commit_shard).options(
        num_cpus=0, max_retries=_WRITE_RETRIES, retry_exceptions=[TransientError]
    )
    writes: list[ray.ObjectRef[None]] = []
    with closing(_label_shards(run, size, progress, on_progress)) as shards:
        for plan, outcomes in shards:
            writes.append(commit.remote(version, plan.index, outcomes))
            while len(writes) >= _WRITES_IN_FLIGHT:
                done, writes = ray.wait(writes)
                _count_written(done, progress, on_progress)
        _count_written(writes, progress, on_progress)
    planned = {plan.index for plan in version.plans()}
    missing = planned - version.committed()
    if missing:
        raise RunError(
            f"{len(missing)} of {len(planned)} shards are missing, the first is {min(missing)}; "
            "run the same command again"
        )
    summaries = version.finish()
    if progress.images > 0:
        version.record_run(
            RunRecord(
                images=progress.images,
                seconds=round(time.monotonic() - start, 1),
                device=run.device,
                workers={"workers": size.workers},
            )
        )
    return summaries


def _count_written(
    writes: list[ray.ObjectRef[None]], progress: Progress, on_progress: Callable[[Progress], None]
) -> None:
    try:
        ray.get(writes)
    except RayTaskError:
        raise  # what the write itself raised
    except RayError as error:
        raise RunError(f"a shard could not be written ({error}); run the same command again") from error
    progress.shards += len(writes)
    on_progress(progress)


def _label_shards(
    run: LabellingRun, size: PoolSize, progress: Progress, on_progress: Callable[[Progress], None]
) -> Generator[tuple[ShardPlan, list[Outcome]]]:
    """Shards as their last image is labelled, with a row for each image in the plan's order."""
    unfinished: dict[str, tuple[ShardPlan, dict[str, Outcome]]] = {}

    def chunks(plans: Iterator[ShardPlan]) -> Iterator[Chunk]:
        for plan in plans:
            rows: dict[str, Outcome] = {}
            unfinished.update((record.image_id, (plan, rows)) for record in plan.records)
            yield from plan.chunks(run.work.chunk_size)

    with (
        read_ahead(run.work.plans_to_do(), _PLANS_AHEAD) as plans,
        closing(_make_pool(run, size).label(chunks(plans))) as labelled,
    ):
        for outcomes in labelled:
            progress.add(outcomes)
            on_progress(progress)
            for outcome in outcomes:
                plan, rows = unfinished.pop(outcome.record.image_id)
                rows[outcome.record.image_id] = outcome
                if len(rows) == len(plan.records):
                    yield plan, [rows[record.image_id] for record in plan.records]


def _make_pool(run: LabellingRun, size: PoolSize) -> WorkerPool:
    actor = ray.remote(Worker).options(
        num_cpus=size.cpus_each, num_gpus=size.gpus_each, max_concurrency=MAX_IN_FLIGHT
    )
    corpus, config = ray.put(run.work.corpus), ray.put(run.config)
    return WorkerPool(lambda: actor.remote(corpus, config, run.image_size, run.device), size.workers)
