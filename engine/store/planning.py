"""Which images a version's shards hold: fixed shard by shard as the corpus is listed, never changed after."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice

from engine.corpora import Corpus, plan_shards
from engine.errors import CorpusError, ImageError, StoreError
from engine.store.pseudo_labels import Version
from engine.types import ImageRecord, Reason, ShardPlan

# Plans of which a few images are looked for in a corpus that seems to be another one.
_PLANS_TO_ASK_FOR = 32


def shard_plans(
    corpus: Corpus, version: Version, *, shard_size: int, limit: int | None, extend: bool
) -> Iterator[ShardPlan]:
    """All shards of a version: those recorded, then those the rest of the corpus fills, recorded on the way.

    A listing that was cut off goes on where it stopped, whatever has changed before that place since. Once a
    listing has ended, `extend` lists anew and makes further shards of images that no shard holds.
    `limit` bounds the number of images in all. Raises StoreError where a recorded plan is missing.
    """
    last: ShardPlan | None = None
    num_planned, ended_before = 0, False
    for plan in version.plans():
        _check_follows(plan, last, version)
        ended_before = ended_before or (last is not None and last.is_last)
        last = plan
        num_planned += len(plan.records)
        yield plan
    if last is not None and last.is_last and not extend:
        return
    if last is None:
        records = corpus.records()
    elif last.is_last or ended_before:
        records = _unplanned(corpus, version)
    else:
        records = corpus.records(after=last.records[-1])
    if limit is not None:
        records = islice(records, max(limit - num_planned, 0))
    for plan in plan_shards(records, shard_size, first=last.index + 1 if last else 0):
        version.record_plan(plan)
        yield plan


def _check_follows(plan: ShardPlan, last: ShardPlan | None, version: Version) -> None:
    expected = last.index + 1 if last else 0
    if plan.index != expected:
        raise StoreError(
            f"the plan of shard {expected} of {version.name} is missing: restore it, or label anew with "
            "--overwrite"
        )


def count_remaining(corpus: Corpus, version: Version, *, limit: int | None, extend: bool) -> int:
    """How many images `shard_plans` holds that are in no committed shard, as far as can be told beforehand.

    Lists the corpus, which may take long.
    """
    committed = version.committed()
    planned, done = 0, 0
    for plan in version.plans():
        planned += len(plan.records)
        done += len(plan.records) if plan.index in committed else 0
    if not extend:
        return sum(1 for _ in islice(corpus.records(), limit)) - done
    rest = None if limit is None else max(limit - planned, 0)
    return planned - done + sum(1 for _ in islice(_unplanned(corpus, version), rest))


def copy_plans(parent: Version, version: Version) -> int:
    """Plan for a version the images of another, in the same shards; returns how many there are."""
    num_images = 0
    for plan in parent.plans():
        version.record_plan(plan)
        num_images += len(plan.records)
    return num_images


def check_has_images(corpus: Corpus) -> None:
    """Raise CorpusError for a corpus without images."""
    if next(corpus.records(), None) is None:
        raise CorpusError(
            f"no images in {corpus.uri}: JPEG, PNG, WebP, TIFF and BMP files are looked for, or those that a "
            "list names"
        )


def check_is_finished(version: Version) -> None:
    """Raise StoreError for a version that is not labelled to its end."""
    if not version.is_finished():
        raise StoreError(f"the labels of {version.name} are not complete: run the label job again first")


def check_same_corpus(corpus: Corpus, version: Version) -> None:
    """Raise StoreError where a version was begun on images that this corpus has not."""
    plan = next(version.plans(), None)
    if plan is None:
        return
    listed = {record.image_id for record in islice(corpus.records(), len(plan.records))}
    if not listed.isdisjoint(record.image_id for record in plan.records):
        return
    # A corpus that changed may begin with new images only: then some of its old ones must still be there.
    some = (
        plan.records[i]
        for plan in islice(version.plans(), _PLANS_TO_ASK_FOR)
        for i in (0, len(plan.records) // 2, -1)
    )
    if not any(_has(corpus, record) for record in some):
        raise StoreError(
            f"the store was begun on another corpus, or its images are gone: it starts with "
            f"{plan.records[0].image_id!r}, {corpus.uri} with {min(listed, default=None)!r}; "
            "say with --corpus where they are, or use another --store"
        )


def _has(corpus: Corpus, record: ImageRecord) -> bool:
    try:
        corpus.read(record)
    except ImageError as error:
        return error.reason is not Reason.MISSING
    return True


def _unplanned(corpus: Corpus, version: Version) -> Iterator[ImageRecord]:
    # 16 bytes an image keep a corpus of ten million within a gigabyte.
    known = {_key(record) for plan in version.plans() for record in plan.records}
    return (record for record in corpus.records() if _key(record) not in known)


def _key(record: ImageRecord) -> bytes:
    return hashlib.blake2b(record.image_id.encode(), digest_size=16).digest()
