"""The pipeline's two ends: what is to do comes from the store's plan, what is done becomes its shards.

Like actors.reader, this module does without torch: its tasks run in processes of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
from ray.data import DataContext
from ray.data.block import Block, BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.data.extensions import ArrowPythonObjectArray

from engine.corpora import Corpus
from engine.errors import ConfigurationError
from engine.planning import shard_plans
from engine.store.pseudo_labels import Version
from engine.types import Outcome


@dataclass(frozen=True, kw_only=True)
class Work:
    """Which images go into which version, in shards and chunks of which size; see `shard_plans`."""

    corpus: Corpus
    version: Version
    shard_size: int
    chunk_size: int
    limit: int | None = None
    extend: bool = False

    def __post_init__(self) -> None:
        for name in ("shard_size", "chunk_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} is at least 1 image, got {value}")


class ChunkSource(Datasource):
    """Chunks of the plan's uncommitted shards, one block each, made while they are consumed.

    One task makes them all, since a listing is one stream. Which shards are committed is fixed when the run
    starts: a task that Ray repeats must make the same blocks again.
    """

    def __init__(self, work: Work, committed: frozenset[int]) -> None:
        self._work = work
        self._committed = committed

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(self._blocks, unknown)]

    def _blocks(self) -> Iterator[Block]:
        work = self._work
        plans = shard_plans(
            work.corpus, work.version, shard_size=work.shard_size, limit=work.limit, extend=work.extend
        )
        for plan in plans:
            if plan.index not in self._committed:
                for chunk in plan.chunks(work.chunk_size):
                    yield pa.table({"chunk": ArrowPythonObjectArray.from_objects([chunk])})


def commit_shard(version: Version, shard: int, outcomes: list[Outcome]) -> None:
    """Write a full shard; as a task, so that the driver need not wait for storage."""
    version.commit(shard, outcomes)
