"""The labelling pipeline: streams a plan's images through a pool of workers into a store.

The driver holds masks as run lengths only: it collects the rows of a shard and passes the full shard to a
write task. A run has succeeded when every planned shard is committed. It stops when the corpus or the store
is out of reach, or when too large a share of the images is rejected; the same command goes on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial

import ray
from ray.exceptions import RayError, RayTaskError

from actors.ledger import MAX_IN_FLIGHT
from actors.open_shards import OpenShards
from actors.outages import outages_as_run_errors
from actors.pool import PoolSize, WorkerPool
from actors.read_ahead import read_ahead
from actors.storage import Work, commit_shard
from actors.workers import Worker
from engine.encoders.centring import FeatureStatistics
from engine.errors import RunError, TransientError
from engine.labelling.config import LabellingConfig
from engine.labelling.labeller import load_labeller
from engine.store.runs import RunRecord
from engine.store.schema import ShardSummary
from engine.types import Outcome, Reason, ShardPlan, Status

# Shards that are listed and planned ahead of the one being handed out.
_PLANS_AHEAD = 2
# Most shards that are being written at a time; with more, memory would grow if the store is slow.
_WRITES_IN_FLIGHT = 4
# Retries of a write that failed with a TransientError; Ray may retry on another node.
_WRITE_RETRIES = 5
# The share of rejected images is not judged before this many images are done.
_MIN_IMAGES = 100


@dataclass(frozen=True, kw_only=True)
class LabellingRun:
    """What to label, how, and on which device.

    `image_size` is the network's input (height, width); `statistics` of the corpus centre an encoder's
    features. A run of at least 100 images stops if more than the share `max_rejected` of them is rejected.
    """

    work: Work
    config: LabellingConfig
    image_size: tuple[int, int]
    device: str
    statistics: FeatureStatistics | None = None
    max_rejected: float = 1.0


@dataclass
class Progress:
    """Counts of a run so far, without what earlier runs of the same version did."""

    images: int = 0
    instances: int = 0
    rejected: int = 0
    shards: int = 0
    reasons: Counter[Reason] = field(default_factory=Counter)

    def add(self, outcomes: Sequence[Outcome], replaced: Sequence[Outcome] = ()) -> None:
        """Count rows, some of which take the place of the rows `replaced`."""
        for rows, sign in ((outcomes, 1), (replaced, -1)):
            self.images += sign * len(rows)
            self.instances += sign * sum(len(row.instances or ()) for row in rows)
            self.rejected += sign * sum(row.status is Status.REJECTED for row in rows)
            for row in rows:
                if row.reason is not None:
                    self.reasons[row.reason] += sign
        self.reasons = +self.reasons

    def check_rejected(self, max_rejected: float) -> None:
        """Raise RunError if more than the share `max_rejected` of 100 images or more is rejected."""
        if self.images < _MIN_IMAGES or self.rejected <= max_rejected * self.images:
            return
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
        raise RunError(
            f"{self.rejected} of {self.images} images are rejected ({reasons}), more than --max-rejected "
            f"{max_rejected:g}: see to the corpus, and the same command goes on; or allow a larger share"
        )


def run_labelling(
    run: LabellingRun, size: PoolSize, on_progress: Callable[[Progress], None]
) -> list[ShardSummary]:
    """Label the images that the version lacks, and finish it; returns the summaries of all its shards.

    `on_progress` is called after every chunk, and at least every few seconds. The run's duration is recorded
    in the version. Raises RunError if shards are missing at the end, the corpus or the store is out of reach,
    or too many images are rejected.
    """
    with outages_as_run_errors():
        return _run(run, size, on_progress)


def _run(run: LabellingRun, size: PoolSize, on_progress: Callable[[Progress], None]) -> list[ShardSummary]:
    start = time.monotonic()
    version = run.work.version
    progress = Progress()
    commit = ray.remote(commit_shard).options(
        num_cpus=0, max_retries=_WRITE_RETRIES, retry_exceptions=[TransientError]
    )
    committed = version.committed()
    writes: list[ray.ObjectRef[None]] = []
    with closing(_label_shards(run, size, progress, on_progress)) as shards:
        for plan, outcomes in shards:
            writes.append(commit.remote(version, plan.index, outcomes, plan.index in committed))
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
    with write_errors():
        ray.get(writes)
    progress.shards += len(writes)
    on_progress(progress)


@contextmanager
def write_errors() -> Iterator[None]:
    """Raise RunError if Ray gives a write up; errors that the write itself raised pass unchanged."""
    try:
        yield
    except RayTaskError:
        raise
    except RayError as error:
        raise RunError(f"a shard could not be written ({error}); run the same command again") from error


def _label_shards(
    run: LabellingRun, size: PoolSize, progress: Progress, on_progress: Callable[[Progress], None]
) -> Generator[tuple[ShardPlan, list[Outcome]]]:
    """Yield each shard when its last image is labelled, with its images' rows in the plan's order."""
    with read_ahead(run.work.plans_to_do(), _PLANS_AHEAD) as plans:
        shards = OpenShards(plans, run.work.chunk_size)
        with closing(_make_pool(run, size).label(shards)) as labelled:
            for outcomes in labelled:
                progress.add(outcomes, replaced=shards.first_rows(outcomes))
                on_progress(progress)
                if not run.work.retry:  # whose images were rejected before
                    progress.check_rejected(run.max_rejected)
                yield from shards.add(outcomes)


def _make_pool(run: LabellingRun, size: PoolSize) -> WorkerPool:
    actor = ray.remote(Worker).options(
        num_cpus=size.cpus_each, num_gpus=size.gpus_each, max_concurrency=MAX_IN_FLIGHT
    )
    corpus, config = ray.put(run.work.corpus), ray.put(run.config)
    load = ray.put(partial(load_labeller, statistics=run.statistics))
    return WorkerPool(lambda: actor.remote(corpus, config, run.image_size, run.device, load), size.workers)
