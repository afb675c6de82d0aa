"""Distance between the labels of two rounds."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest

from engine.errors import StoreError
from engine.masks.instances import Instances
from engine.masks.rle import cross_ious
from engine.types import Outcome


def label_change(before: Iterable[Outcome], after: Iterable[Outcome]) -> float:
    """1 - mean over all instances of both rounds of the best IoU with the other round's instances: 0 to 1.

    0 means equal labels, or no instances at all; 1 means that no instances overlap. Both are rows of the same
    images in the same order, as rounds of one store are; one row of each is in memory at a time. Raises
    StoreError if the images differ.
    """
    agreement, num_instances = 0.0, 0
    for old, new in zip_longest(before, after):
        if old is None or new is None or old.record.image_id != new.record.image_id:
            names = [None if row is None else row.record.image_id for row in (old, new)]
            raise StoreError(
                f"the rounds are not of the same images: {names[0]!r} in one, {names[1]!r} in the other"
            )
        agreement += _agreement(old.instances, new.instances)
        num_instances += len(old.instances or ()) + len(new.instances or ())
    return 1 - agreement / num_instances if num_instances else 0.0


def _agreement(old: Instances | None, new: Instances | None) -> float:
    """Sum of the best IoUs of all instances of one image, in both directions."""
    if old is None or new is None or old.size != new.size:
        return 0.0
    ious = cross_ious(old.rles, new.rles, old.size)
    return float(ious.max(axis=0, initial=0).sum() + ious.max(axis=1, initial=0).sum())
