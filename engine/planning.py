"""Which images a version's shards hold: fixed shard by shard as the corpus is listed, never changed after."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice

from engine.corpora import Corpus, plan_shards
from engine.errors import CorpusError, StoreError
from engine.store.pseudo_labels import Version
from engine.types import ImageRecord, ShardPlan


def shard_plans(
    corpus: Corpus, version: Version, *, shard_size: int, limit: int | None, extend: bool
) -> Iterator[ShardPlan]:
    """All shards of a version: those recorded, then those the rest of the corpus fills, recorded on the way.

    A listing that was cut off goes on where it stopped, whatever has changed before that place since. Once a
    listing has ended, `extend` lists anew and makes further shards of images that no shard holds.
    `limit` bounds the number of images in all.
    """
    last: ShardPlan | None = None
    num_planned, ended_before = 0, False
    for plan in version.plans():
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


def check_corpus(corpus: Corpus, version: Version) -> None:
    """See that there are images, and that a version begun earlier was begun on them.

    Raises CorpusError for a corpus without images and StoreError where none of the corpus's first images is
    in the version's first shard.
    """
    first_plan = next(version.plans(), None)
    num_compared = len(first_plan.records) if first_plan else 1
    listed = {record.image_id for record in islice(corpus.records(), num_compared)}
    if not listed:
        raise CorpusError(f"no images in {corpus.uri}: JPEG, PNG, WebP, TIFF and BMP files are looked for")
    if first_plan and listed.isdisjoint(record.image_id for record in first_plan.records):
        raise StoreError(
            f"the store was begun on another corpus: it starts with {first_plan.records[0].image_id!r}, "
            f"{corpus.uri} with {min(listed)!r}; use another --store"
        )


def _unplanned(corpus: Corpus, version: Version) -> Iterator[ImageRecord]:
    # 16 bytes an image keep a corpus of ten million within a gigabyte.
    known = {_key(record) for plan in version.plans() for record in plan.records}
    return (record for record in corpus.records() if _key(record) not in known)


def _key(record: ImageRecord) -> bytes:
    return hashlib.blake2b(record.image_id.encode(), digest_size=16).digest()
