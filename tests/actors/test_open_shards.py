"""Rows of open shards; images whose rows may be an outage's fault come twice."""

import pytest

from actors.open_shards import OpenShards
from engine.errors import PlaceError
from engine.types import Chunk, ImageRecord, Outcome, Reason, ShardPlan, Status

RECORDS = tuple(ImageRecord(image_id=name, path=name) for name in "abc")


def shards_of(*records: ImageRecord) -> OpenShards:
    return OpenShards(iter([ShardPlan(index=4, records=records, is_last=True)]), chunk_size=2)


def row(record: ImageRecord, reason: Reason | None = None) -> Outcome:
    status = Status.LABELLED if reason is None else Status.REJECTED
    return Outcome(record=record, status=status, reason=reason)


def test_a_sound_shard_is_complete_with_its_last_row_and_in_order() -> None:
    shards = shards_of(*RECORDS)
    assert [chunk.records for chunk in shards] == [RECORDS[:2], RECORDS[2:]]
    a, b, c = map(row, RECORDS)
    assert list(shards.add([c])) == []
    ((plan, rows),) = shards.add([b, a])
    assert (plan.index, rows) == (4, [a, b, c])
    assert list(shards) == []


def test_a_doubtful_image_is_handed_out_again_and_its_second_row_counts() -> None:
    shards = shards_of(*RECORDS)
    list(shards)
    missing = row(RECORDS[1], Reason.MISSING)
    assert list(shards.add([missing, row(RECORDS[0]), row(RECORDS[2])])) == []
    assert list(shards) == [Chunk(shard=4, records=(RECORDS[1],))]
    found = row(RECORDS[1])
    assert shards.first_rows([found]) == [missing]
    ((_, rows),) = shards.add([found])
    assert rows[1] is found


def test_an_image_that_is_missing_twice_is_a_row() -> None:
    shards = shards_of(*RECORDS[:2])
    list(shards)
    rejected = [row(RECORDS[0], Reason.MISSING), row(RECORDS[1], Reason.TOO_SMALL)]
    assert list(shards.add(rejected)) == []
    assert [chunk.records for chunk in shards] == [RECORDS[:1]]
    ((_, rows),) = shards.add(rejected[:1])
    assert rows == rejected
    assert list(shards) == []


def test_a_shard_of_unreachable_images_is_an_outage() -> None:
    shards = shards_of(RECORDS[0])
    list(shards)
    silent = [row(RECORDS[0], Reason.UNREACHABLE)]
    assert list(shards.add(silent)) == []
    with pytest.raises(PlaceError, match="none of the 1 images"):
        list(shards.add(silent))
