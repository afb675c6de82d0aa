from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.corpora import plan_shards
from engine.errors import CorpusError, ImageError, StoreError
from engine.objects.memory import MemoryObjects
from engine.store.planning import (
    check_has_images,
    check_is_finished,
    check_same_corpus,
    count_remaining,
    shard_plans,
)
from engine.store.pseudo_labels import PseudoLabelStore, Version
from engine.store.version_info import VersionInfo
from engine.types import ImageRecord, Outcome, Reason, ShardPlan, Status

INFO = VersionInfo(round=0, configuration={}, weights_digest="", parent=None, code_version="", device="cpu")


class ListCorpus:
    """A corpus of one-letter names, which a test may change."""

    uri, kind = "list:", "folder"

    def __init__(self, names: str) -> None:
        self.names = names

    def records(self, after: ImageRecord | None = None) -> Iterator[ImageRecord]:
        for name in sorted(self.names):
            if after is None or name > after.image_id:
                yield ImageRecord(image_id=name, path=name)

    def read(self, record: ImageRecord) -> bytes:
        if record not in self.records():
            raise ImageError(Reason.MISSING, "not listed")
        return b""


def version() -> Version:
    return PseudoLabelStore(MemoryObjects()).begin(INFO, "resume")


def planned(
    corpus: ListCorpus, into: Version, *, shard_size: int = 3, limit: int | None = None, extend: bool = False
) -> list[str]:
    plans = list(shard_plans(corpus, into, shard_size=shard_size, limit=limit, extend=extend))
    assert plans == list(into.plans())
    return ["".join(record.image_id for record in plan.records) for plan in plans]


@given(st.integers(0, 20), st.integers(1, 7), st.integers(1, 7))
def test_shards_and_chunks_hold_every_image_once_in_order(
    count: int, shard_size: int, chunk_size: int
) -> None:
    records = [ImageRecord(image_id=str(i), path=str(i)) for i in range(count)]
    plans = list(plan_shards(iter(records), shard_size))
    assert [record for plan in plans for record in plan.records] == records
    assert all(len(plan.records) == shard_size for plan in plans[:-1])
    assert [plan.is_last for plan in plans] == [False] * (len(plans) - 1) + [True] * bool(plans)
    for plan in plans:
        chunks = list(plan.chunks(chunk_size))
        assert tuple(record for chunk in chunks for record in chunk.records) == plan.records
        assert all(len(chunk.records) == chunk_size for chunk in chunks[:-1])
        assert {chunk.shard for chunk in chunks} == {plan.index}


def test_recorded_plans_do_not_change() -> None:
    into = version()
    assert planned(ListCorpus("abcdefgh"), into) == ["abc", "def", "gh"]
    assert planned(ListCorpus("abCcdefghxyz"), into) == ["abc", "def", "gh"]


def test_an_interrupted_listing_continues() -> None:
    into = version()
    plans = shard_plans(ListCorpus("bcdefgh"), into, shard_size=3, limit=None, extend=False)
    assert next(plans).index == 0
    plans.close()
    # "a" was added before the place where the listing stopped: it waits for `extend`.
    assert planned(ListCorpus("abcdefgh"), into) == ["bcd", "efg", "h"]
    assert planned(ListCorpus("abcdefgh"), into, extend=True) == ["bcd", "efg", "h", "a"]


def test_extending_adds_new_images_and_changes_no_plan() -> None:
    into = version()
    planned(ListCorpus("bdf"), into, shard_size=2)
    assert planned(ListCorpus("abcdefg"), into, shard_size=2, extend=True) == ["bd", "f", "ac", "eg"]
    assert planned(ListCorpus("abcdefg"), into, shard_size=2, extend=True) == ["bd", "f", "ac", "eg"]


def test_an_interrupted_extension_continues() -> None:
    into = version()
    planned(ListCorpus("bd"), into, shard_size=2)
    plans = shard_plans(ListCorpus("abcdefg"), into, shard_size=2, limit=None, extend=True)
    assert ["".join(r.image_id for r in next(plans).records) for _ in range(2)] == ["bd", "ac"]
    plans.close()
    assert planned(ListCorpus("abcdefg"), into, shard_size=2) == ["bd", "ac", "ef", "g"]


def test_a_limit_bounds_the_total_number_of_images() -> None:
    into = version()
    assert planned(ListCorpus("abcdefgh"), into, limit=4) == ["abc", "d"]
    assert planned(ListCorpus("abcdefgh"), into, limit=4) == ["abc", "d"]
    assert planned(ListCorpus("abcdefgh"), into, limit=4, extend=True) == ["abc", "d"]


def test_a_corpus_is_checked_before_work() -> None:
    into = version()
    with pytest.raises(CorpusError, match="no images in list:"):
        check_has_images(ListCorpus(""))
    check_has_images(ListCorpus("a"))
    check_same_corpus(ListCorpus("abc"), into)
    into.record_plan(next(plan_shards(ListCorpus("bcd").records(), 3)))
    check_same_corpus(ListCorpus("abcdefg"), into)
    # With more new images than are asked for, so that no planned one is among them.
    check_same_corpus(ListCorpus("BCDbcd"), into)
    # The first planned image is gone as well.
    check_same_corpus(ListCorpus("BCDcd"), into)
    with pytest.raises(StoreError, match="another corpus"):
        check_same_corpus(ListCorpus("xyz"), into)
    with pytest.raises(StoreError, match="say with --corpus where they are"):
        check_same_corpus(ListCorpus(""), into)
    with pytest.raises(StoreError, match="are not complete"):
        check_is_finished(into)


def test_a_missing_plan_is_an_error() -> None:
    objects = MemoryObjects()
    into = PseudoLabelStore(objects).begin(INFO, "resume")
    planned(ListCorpus("abcdef"), into, shard_size=2)
    objects.delete(f"{into.name}/plan/000001.parquet")
    with pytest.raises(StoreError, match=r"plan of shard 1 .* is missing: restore it, or .*--overwrite"):
        list(shard_plans(ListCorpus("abcdef"), into, shard_size=2, limit=None, extend=False))


@pytest.mark.parametrize(
    ("names", "limit", "extend", "expected"),
    [
        ("abcdef", None, False, 4),
        ("abcdef", 5, False, 3),
        # a and c are gone; d, x and y are new: shard 1 and those three remain.
        ("bdxy", None, True, 4),
        ("bdxy", 4, True, 2),
    ],
)
def test_remaining_images_are_counted(names: str, limit: int | None, extend: bool, expected: int) -> None:
    into = version()
    planned(ListCorpus("abc"), into, shard_size=2)
    into.commit(0, [Outcome(record=ImageRecord(image_id="a", path="a"), status=Status.LABELLED)])
    assert count_remaining(ListCorpus(names), into, limit=limit, extend=extend) == expected


def test_plans_are_recorded_before_they_are_yielded() -> None:
    into = version()
    first = next(shard_plans(ListCorpus("abcd"), into, shard_size=2, limit=None, extend=False))
    assert list(into.plans()) == [first]
    assert isinstance(first, ShardPlan)
