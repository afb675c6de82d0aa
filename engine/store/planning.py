"""The plan of a version: the images of each shard, recorded while the corpus is listed and then fixed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice

from engine.corpora import Corpus, plan_shards
from engine.errors import CorpusError, ImageError, StoreError
from engine.store.pseudo_labels import Version
from engine.types import ImageRecord, Reason, ShardPlan

# Plans whose images are looked up in a corpus that seems to be a different one.
_PLANS_TO_CHECK = 32


def shard_plans(
    corpus: Corpus, version: Version, *, shard_size: int, limit: int | None, extend: bool
) -> Iterator[ShardPlan]:
    """Yield the plans of all shards: the recorded ones, then new ones for the rest of the corpus.

    New plans are recorded before they are yielded. An interrupted listing continues where it stopped, even if
    the corpus has changed before that place. After a complete listing, `extend` lists the corpus again and
    plans shards for the images that no shard holds. `limit` is the most images of all plans together. Raises
    StoreError if a recorded plan is missing.
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
            f"the plan of shard {expected} of {version.name} is missing: restore it, or label again with "
            "--overwrite"
        )


def count_remaining(corpus: Corpus, version: Version, *, limit: int | None, extend: bool) -> int:
    """Count the images of `shard_plans` that are in no committed shard.

    Lists the corpus, which may take long. An estimate if the corpus has changed since its listing began.
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
    """Record the plans of `parent` for `version`; returns their number of images."""
    num_images = 0
    for plan in parent.plans():
        version.record_plan(plan)
        num_images += len(plan.records)
    return num_images


def check_has_images(corpus: Corpus) -> None:
    """Raise CorpusError if a corpus has no images."""
    if next(corpus.records(), None) is None:
        raise CorpusError(
            f"no images in {corpus.uri}: give a place with JPEG, PNG, WebP, TIFF or BMP files, or a list of "
            "images"
        )


def check_is_finished(version: Version) -> None:
    """Raise StoreError if a version is not finished."""
    if not version.is_finished():
        raise StoreError(f"the labels of {version.name} are not complete: run the label job again first")


def check_same_corpus(corpus: Corpus, version: Version) -> None:
    """Raise StoreError if a version was begun on another corpus: one whose images this one does not have."""
    plan = next(version.plans(), None)
    if plan is None:
        return
    listed = {record.image_id for record in islice(corpus.records(), len(plan.records))}
    if not listed.isdisjoint(record.image_id for record in plan.records):
        return
    # A corpus that has grown may begin with new images only; some of the planned ones must still be there.
    samples = (
        plan.records[i]
        for plan in islice(version.plans(), _PLANS_TO_CHECK)
        for i in (0, len(plan.records) // 2, -1)
    )
    if not any(_has(corpus, record) for record in samples):
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
    # Digests of 16 bytes keep the memory for ten million images below a gigabyte.
    known = {_key(record) for plan in version.plans() for record in plan.records}
    return (record for record in corpus.records() if _key(record) not in known)


def _key(record: ImageRecord) -> bytes:
    return hashlib.blake2b(record.image_id.encode(), digest_size=16).digest()
