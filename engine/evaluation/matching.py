"""Match annotated images to the images of a corpus or a store by path and COCO id."""

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
# Below this share of possible matches, the names probably agree by chance.
_MIN_SHARE = 0.1
# The distance of images that agree in COCO id alone.
_ID_ALONE = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Match(Generic[Item]):
    """An annotated image and the item matched to it."""

    truth: AnnotatedImage
    item: Item


def match_images(
    items: Iterable[tuple[ImageRecord, Item]], truths: Sequence[AnnotatedImage]
) -> list[Match[Item]]:
    """Match items to annotated images; matches keep the order of `truths`, unmatched items are not held.

    Two paths agree if they are equal or one ends in the other, with or without the suffix. An item matches
    the annotated image with its COCO id and an agreeing path; otherwise the one with the closest path;
    otherwise the one with its COCO id alone. If any item has the path of one annotated image and the COCO id
    of another, the images were renumbered, and ids alone match nothing.

    Raises CorpusError if two candidates are equally close, or if few or no images match.
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
        are_renumbered = are_renumbered or index.contradicts_id(record, position)
        held = closest.get(position)
        if held is not None and held[0] == distance:
            raise CorpusError(
                f"both {held[1].path!r} and {record.path!r} could be {truths[position].path!r} of the ground "
                "truth: give a ground truth whose names tell them apart"
            )
        if held is None or distance < held[0]:
            closest[position] = (distance, record, item)
    if are_renumbered:
        closest = {position: held for position, held in closest.items() if held[0] < _ID_ALONE}
    if example is None or len(closest) <= _MIN_SHARE * min(num_items, len(truths)):
        raise CorpusError(
            f"{len(closest)} of {len(truths)} images of the ground truth are among the {num_items} given: "
            f"the ground truth has {_describe(truths)}, the images have "
            f"{_describe([example] if example else [])}; give the ground truth of these images"
        )
    return [Match(truth=truths[position], item=closest[position][2]) for position in sorted(closest)]


class _TruthIndex:
    """Finds annotated images by COCO id and by path."""

    def __init__(self, truths: Sequence[AnnotatedImage]) -> None:
        self._truths = truths
        self._by_id: dict[int | None, int] = {
            truth.coco_id: i for i, truth in enumerate(truths) if truth.coco_id is not None
        }
        self._by_stem: dict[str, list[int]] = defaultdict(list)
        for position, truth in enumerate(truths):
            self._by_stem[PurePosixPath(truth.path).stem].append(position)

    def find(self, record: ImageRecord) -> tuple[int, int] | None:
        """The distance and the position of the closest annotated image."""
        path, with_id = PurePosixPath(record.path), self._by_id.get(record.coco_id)
        if with_id is not None and _distance(path, self._truths[with_id]) is not None:
            return 0, with_id
        with_path = self._find_path(path)
        return (_ID_ALONE, with_id) if with_path is None and with_id is not None else with_path

    def contradicts_id(self, record: ImageRecord, position: int) -> bool:
        """Whether the record's COCO id belongs to an annotated image other than the one at `position`."""
        return self._by_id.get(record.coco_id, position) != position

    def _find_path(self, path: PurePosixPath) -> tuple[int, int] | None:
        """The distance and the position of the annotated image with the closest path."""
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
    """1 for equal paths, 2 if one ends in the other, 3 if it does so apart from the suffix, otherwise None.

    The suffix of an id mask is ignored; a path in a folder of the masks' name may be the mask itself: 4.
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
    """The first image's path and COCO id, for a message."""
    if not images:
        return "nothing"
    first = images[0]
    return f"{first.path!r}" + (f" (id {first.coco_id})" if first.coco_id is not None else "")
