"""Shards that are being labelled: their chunks to hand out, and their rows until the last one is there.

Pure Python. An image whose row could be the fault of an outage, such as a missing or a truncated file, is
handed out again when the other images of its shard are done; the second row counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from engine.errors import PlaceError
from engine.types import DOUBTFUL_REASONS, Chunk, ImageRecord, Outcome, Reason, ShardPlan


@dataclass
class _OpenShard:
    plan: ShardPlan
    rows: dict[ImageRecord, Outcome] = field(default_factory=dict)
    doubtful: set[ImageRecord] = field(default_factory=set)
    """Images that were handed out again and have not come back."""
    is_second_time: bool = False


class OpenShards(Iterator[Chunk]):
    """An iterator over chunks that ends when there are none for now; `add` may bring more."""

    def __init__(self, plans: Iterator[ShardPlan], chunk_size: int) -> None:
        self._chunk_size = chunk_size
        self._open: dict[ImageRecord, _OpenShard] = {}
        self._again: deque[Chunk] = deque()
        self._planned = self._plan_chunks(plans)

    def __next__(self) -> Chunk:
        return self._again.popleft() if self._again else next(self._planned)

    def _plan_chunks(self, plans: Iterator[ShardPlan]) -> Iterator[Chunk]:
        for plan in plans:
            shard = _OpenShard(plan)
            self._open.update((record, shard) for record in plan.records)
            yield from plan.chunks(self._chunk_size)

    def first_rows(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """The rows that these ones replace; call it before `add`."""
        shards = ((self._open[outcome.record], outcome.record) for outcome in outcomes)
        return [shard.rows[record] for shard, record in shards if record in shard.rows]

    def add(self, outcomes: Sequence[Outcome]) -> Iterator[tuple[ShardPlan, list[Outcome]]]:
        """Add rows, and yield the shards that they complete, with all rows in the plan's order.

        Raises PlaceError if no image of a shard could be reached.
        """
        for outcome in outcomes:
            shard = self._open[outcome.record]
            shard.rows[outcome.record] = outcome
            shard.doubtful.discard(outcome.record)
            if len(shard.rows) < len(shard.plan.records) or shard.doubtful:
                continue
            if not shard.is_second_time and self._hand_out_again(shard):
                continue
            for record in shard.plan.records:
                del self._open[record]
            rows = [shard.rows[record] for record in shard.plan.records]
            if all(row.reason is Reason.UNREACHABLE for row in rows):
                raise PlaceError(
                    f"none of the {len(rows)} images of a shard can be reached: {rows[0].detail}"
                )
            yield shard.plan, rows

    def _hand_out_again(self, shard: _OpenShard) -> bool:
        """Hand out the doubtful images of a shard again; whether there are any."""
        shard.is_second_time = True
        records = tuple(
            record for record in shard.plan.records if shard.rows[record].reason in DOUBTFUL_REASONS
        )
        shard.doubtful = set(records)
        plan = ShardPlan(index=shard.plan.index, records=records, is_last=shard.plan.is_last)
        self._again.extend(plan.chunks(self._chunk_size))
        return bool(records)
