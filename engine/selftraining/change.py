"""How far the labels of one round are from those of another."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest

from engine.errors import StoreError
from engine.masks.instances import Instances
from engine.masks.rle import cross_ious
from engine.types import Outcome


def label_change(before: Iterable[Outcome], after: Iterable[Outcome]) -> float:
    """1 - the mean IoU of every instance, of both, with the best fitting instance of the other: 0 to 1.

    0 says that labels are equal, 1 that nothing of the ones is in the others; without any instance it is 0.
    Both are rows of the same images in the same order, as two rounds of a store have them; one of each is in
    memory at a time. Raises StoreError where they are not.
    """
    agreement, num_instances = 0.0, 0
    for old, new in zip_longest(before, after):
        if old is None or new is None or old.record.image_id != new.record.image_id:
            names = [None if row is None else row.record.image_id for row in (old, new)]
            raise StoreError(f"the rounds are not of the same images: one has {names[0]!r}, one {names[1]!r}")
        agreement += _agreement(old.instances, new.instances)
        num_instances += len(old.instances or ()) + len(new.instances or ())
    return 1 - agreement / num_instances if num_instances else 0.0


def _agreement(old: Instances | None, new: Instances | None) -> float:
    """The sum of all best IoUs of one image, in both directions."""
    if old is None or new is None or old.size != new.size:
        return 0.0
    ious = cross_ious(old.rles, new.rles, old.size)
    return float(ious.max(axis=0, initial=0).sum() + ious.max(axis=1, initial=0).sum())
