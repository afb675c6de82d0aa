"""Which annotated image is which image of a corpus or a store: by COCO's number, else by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Generic, TypeVar

from engine.errors import CorpusError
from engine.ground_truth import AnnotatedImage
from engine.types import ImageRecord

Item = TypeVar("Item")
# Of fewer matches than this share of what could match, names alike by chance are the likely reason.
_MIN_SHARE = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Match(Generic[Item]):
    """An annotated image and what was matched with it."""

    truth: AnnotatedImage
    item: Item


def match_images(
    items: Iterable[tuple[ImageRecord, Item]], truths: Sequence[AnnotatedImage]
) -> list[Match[Item]]:
    """The annotated images that are among the items, in the order of `truths`; other items are not held.

    An item is an annotated image if both have the same COCO number. Otherwise names decide: paths that are
    equal, or of which one ends in the other, with or without the suffix; the closest such pair counts.

    Raises CorpusError where two are equally close, and where few or none match.
    """
    index = _TruthIndex(truths)
    closest: dict[int, tuple[int, ImageRecord, Item]] = {}
    num_items, example = 0, None
    for record, item in items:
        num_items, example = num_items + 1, example or record
        found = index.find(record)
        if found is None:
            continue
        distance, position = found
        held = closest.get(position)
        if held is not None and held[0] == distance:
            raise CorpusError(
                f"both {held[1].path!r} and {record.path!r} could be {truths[position].path!r} of the ground "
                "truth: give a ground truth whose names tell them apart"
            )
        if held is None or distance < held[0]:
            closest[position] = (distance, record, item)
    if example is None or len(closest) <= _MIN_SHARE * min(num_items, len(truths)):
        raise CorpusError(
            f"{len(closest)} of {len(truths)} images of the ground truth are among the {num_items} given: "
            f"the ground truth has {_describe(truths)}, there is {_describe([example] if example else [])}; "
            "give the ground truth of these images"
        )
    return [Match(truth=truths[position], item=closest[position][2]) for position in sorted(closest)]


class _TruthIndex:
    """Finds annotated images by number and by name."""

    def __init__(self, truths: Sequence[AnnotatedImage]) -> None:
        self._paths = [PurePosixPath(truth.path) for truth in truths]
        self._by_id = {truth.coco_id: i for i, truth in enumerate(truths) if truth.coco_id is not None}
        self._by_stem: dict[str, list[int]] = defaultdict(list)
        for position, path in enumerate(self._paths):
            self._by_stem[path.stem].append(position)

    def find(self, record: ImageRecord) -> tuple[int, int] | None:
        """How far the closest annotated image is from this name, and its position."""
        if record.coco_id in self._by_id:
            return 0, self._by_id[record.coco_id]
        path = PurePosixPath(record.path)
        candidates = [
            (distance, position)
            for position in self._by_stem.get(path.stem, ())
            if (distance := _distance(path, self._paths[position])) is not None
        ]
        candidates.sort()
        if len(candidates) > 1 and candidates[0][0] == candidates[1][0]:
            names = " and ".join(repr(str(self._paths[position])) for _, position in candidates[:2])
            raise CorpusError(
                f"{record.path!r} could be {names} of the ground truth: give a ground truth whose names tell "
                "them apart"
            )
        return candidates[0] if candidates else None


def _distance(one: PurePosixPath, other: PurePosixPath) -> int | None:
    """1 for equal paths, 2 where one ends in the other, 3 where it does without suffixes, None otherwise.

    >>> path = PurePosixPath("val/a.jpg")
    >>> [_distance(path, PurePosixPath(other)) for other in ("val/a.jpg", "a.jpg", "a", "train/a.jpg")]
    [1, 2, 3, None]
    """
    if one == other:
        return 1
    if _ends_in(one.parts, other.parts):
        return 2
    return 3 if _ends_in(one.with_suffix("").parts, other.with_suffix("").parts) else None


def _ends_in(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the shorter of two paths is the end of the longer."""
    length = min(len(one), len(other))
    return one[-length:] == other[-length:]


def _describe(images: Sequence[AnnotatedImage | ImageRecord]) -> str:
    """The first name, and number, of several images."""
    if not images:
        return "nothing"
    first = images[0]
    return f"{first.path!r}" + (f" (number {first.coco_id})" if first.coco_id is not None else "")
