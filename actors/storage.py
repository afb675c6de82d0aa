"""The pipeline's two ends: what is to do comes from the store's plan, what is done becomes its shards.

Like actors.reader, this module does without torch: its tasks run in processes of their own.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from engine.corpora import Corpus
from engine.errors import ConfigurationError
from engine.store.planning import shard_plans
from engine.store.pseudo_labels import Version
from engine.types import Outcome, ShardPlan


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

    def plans_to_do(self) -> Generator[ShardPlan]:
        """The plan's uncommitted shards, as the corpus is listed."""
        committed = self.version.committed()
        plans = shard_plans(
            self.corpus, self.version, shard_size=self.shard_size, limit=self.limit, extend=self.extend
        )
        return (plan for plan in plans if plan.index not in committed)


def commit_shard(version: Version, shard: int, outcomes: list[Outcome]) -> None:
    """Write a full shard; as a task, so that the driver need not wait for storage."""
    version.commit(shard, outcomes)
