"""The two ends of the labelling pipeline: plans from the store, and shards written to it.

Like actors.reader, this module does not import torch: its tasks run in processes of their own.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

from engine.bounds import Bounded, Count
from engine.corpora import Corpus
from engine.store.planning import shard_plans
from engine.store.pseudo_labels import Version
from engine.types import Outcome, Reason, ShardPlan


@dataclass(frozen=True, kw_only=True)
class Work(Bounded):
    """The corpus to label and the version to label it into; sizes and `limit` are numbers of images.

    `limit` and `extend` are those of `shard_plans`. Images that were rejected for a reason in `retry` are
    labelled again.
    """

    corpus: Corpus
    version: Version
    shard_size: Count
    chunk_size: Count
    limit: Count | None = None
    extend: bool = False
    retry: frozenset[Reason] = frozenset()

    def plans_to_do(self) -> Generator[ShardPlan]:
        """Yield the plans of uncommitted shards while the corpus is listed, and what to do again in others.

        The plan of a committed shard holds the images that are labelled again, if any.
        """
        committed = self.version.committed()
        again = self.version.rows_with(self.retry) if self.retry else {}
        plans = shard_plans(
            self.corpus, self.version, shard_size=self.shard_size, limit=self.limit, extend=self.extend
        )
        for plan in plans:
            if plan.index not in committed:
                yield plan
            elif plan.index in again:
                yield replace(plan, records=tuple(again[plan.index]))


def commit_shard(version: Version, shard: int, outcomes: list[Outcome], is_retry: bool) -> None:
    """Write a full shard, or rows of a committed one that were made again.

    Run as a task, so that the driver does not wait for storage.
    """
    if is_retry:
        version.replace_rows(shard, outcomes)
    else:
        version.commit(shard, outcomes)
