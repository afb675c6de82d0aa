"""Which annotated image is which image of a corpus or a store: by name and COCO's number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Generic, TypeVar

from engine.errors import CorpusError
from engine.evaluation.ground_truth import AnnotatedImage
from engine.types import ImageRecord

Item = TypeVar("Item")
# Of fewer matches than this share of what could match, names alike by chance are the likely reason.
_MIN_SHARE = 0.1
# The distance of images that have a number in common, but no name.
_NUMBER_ALONE = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Match(Generic[Item]):
    """An annotated image and what was matched with it."""

    truth: AnnotatedImage
    item: Item


def match_images(
    items: Iterable[tuple[ImageRecord, Item]], truths: Sequence[AnnotatedImage]
) -> list[Match[Item]]:
    """The annotated images that are among the items, in the order of `truths`; other items are not held.

    Names agree where paths are equal, or one ends in the other, with or without the suffix. An item is the
    annotated image of an agreeing name and its COCO number, else of the closest name, else of its number
    alone. Where some item has the name of one image and the number of another, the images were numbered
    anew, and no number counts by itself.

    Raises CorpusError where two are equally close, and where few or none match.
    """
    index = _TruthIndex(truths)
    closest: dict[int, tuple[int, ImageRecord, Item]] = {}
    num_items, example, are_renumbered = 0, None, False
    for record, item in items:
        num_items, example = num_items + 1, example or record
        found = index.find(record)
        if found is None:
            continue
        distance, position = found
        are_renumbered = are_renumbered or index.contradicts_number(record, position)
        held = closest.get(position)
        if held is not None and held[0] == distance:
            raise CorpusError(
                f"both {held[1].path!r} and {record.path!r} could be {truths[position].path!r} of the ground "
                "truth: give a ground truth whose names tell them apart"
            )
        if held is None or distance < held[0]:
            closest[position] = (distance, record, item)
    if are_renumbered:
        closest = {position: held for position, held in closest.items() if held[0] < _NUMBER_ALONE}
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
        self._truths = truths
        self._by_id: dict[int | None, int] = {
            truth.coco_id: i for i, truth in enumerate(truths) if truth.coco_id is not None
        }
        self._by_stem: dict[str, list[int]] = defaultdict(list)
        for position, truth in enumerate(truths):
            self._by_stem[PurePosixPath(truth.path).stem].append(position)

    def find(self, record: ImageRecord) -> tuple[int, int] | None:
        """How far the closest annotated image is from this one, and its position."""
        path, numbered = PurePosixPath(record.path), self._by_id.get(record.coco_id)
        if numbered is not None and _distance(path, self._truths[numbered]) is not None:
            return 0, numbered
        named = self._find_name(path)
        return (_NUMBER_ALONE, numbered) if named is None and numbered is not None else named

    def contradicts_number(self, record: ImageRecord, position: int) -> bool:
        """Whether the number of this image is that of another annotated image than the one at `position`."""
        return self._by_id.get(record.coco_id, position) != position

    def _find_name(self, path: PurePosixPath) -> tuple[int, int] | None:
        """How far the closest name is from this one, and its position."""
        candidates = sorted(
            (distance, position)
            for position in self._by_stem.get(path.stem, ())
            if (distance := _distance(path, self._truths[position])) is not None
        )
        if len(candidates) > 1 and candidates[0][0] == candidates[1][0]:
            names = " and ".join(repr(self._truths[position].path) for _, position in candidates[:2])
            raise CorpusError(
                f"{str(path)!r} could be {names} of the ground truth: give a ground truth whose names tell "
                "them apart"
            )
        return candidates[0] if candidates else None


def _distance(path: PurePosixPath, truth: AnnotatedImage) -> int | None:
    """1 for equal paths, 2 where one ends in the other, 3 where it does without suffixes, None otherwise.

    The suffix of an id mask says nothing, and what lies in a folder of that name, 4, may be the mask itself.
    """
    other = PurePosixPath(truth.path)
    if not _ends_in(path.with_suffix("").parts, other.with_suffix("").parts):
        return None
    if truth.mask_folder is not None:
        return 4 if path.parent.name == truth.mask_folder else 3
    if path == other:
        return 1
    return 2 if _ends_in(path.parts, other.parts) else 3


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
