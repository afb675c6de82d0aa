"""The two ends of the labelling pipeline: plans from the store, and shards written to it.

Like actors.reader, this module does not import torch: its tasks run in processes of their own.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from engine.bounds import Bounded, Count
from engine.corpora import Corpus
from engine.store.planning import shard_plans
from engine.store.pseudo_labels import Version
from engine.types import Outcome, ShardPlan


@dataclass(frozen=True, kw_only=True)
class Work(Bounded):
    """The corpus to label and the version to label it into; sizes and `limit` are numbers of images.

    `limit` and `extend` are those of `shard_plans`.
    """

    corpus: Corpus
    version: Version
    shard_size: Count
    chunk_size: Count
    limit: Count | None = None
    extend: bool = False

    def plans_to_do(self) -> Generator[ShardPlan]:
        """Yield the plans of uncommitted shards while the corpus is listed."""
        committed = self.version.committed()
        plans = shard_plans(
            self.corpus, self.version, shard_size=self.shard_size, limit=self.limit, extend=self.extend
        )
        return (plan for plan in plans if plan.index not in committed)


def commit_shard(version: Version, shard: int, outcomes: list[Outcome]) -> None:
    """Write a full shard; run as a task, so that the driver does not wait for storage."""
    version.commit(shard, outcomes)
