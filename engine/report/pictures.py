"""Pick the images of a report and draw them."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.corpora import Corpus
from engine.errors import ImageError, TransientError
from engine.images.decoding import DecodingConfig, decode_image
from engine.masks.boxes import mask_boxes_xyxy
from engine.masks.components import resize_masks
from engine.masks.instances import Instances
from engine.masks.rle import decode_rles, encode_rles
from engine.report.colours import colour_ratios
from engine.report.drawing import draw_instances, encode_jpeg, select_shown
from engine.store.columns import ShardColumns
from engine.types import ImageRecord

_PER_GROUP = 8
_SAMPLE_SIZE = 24
_LONG_SIDE = 400
_GROUND_GREY = 214


@dataclass(frozen=True, kw_only=True, eq=False)
class Picked:
    """A labelled image picked for a report; `sha256` is of the labelled file, `mean_score` of its masks."""

    record: ImageRecord
    sha256: str
    instances: Instances
    mean_score: float
    shard: int


@dataclass(frozen=True, kw_only=True)
class PictureGroup:
    """Picked images under one title."""

    title: str
    picked: tuple[Picked, ...]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A small JPEG and its (height, width); without a photograph, masks are drawn on plain grey."""

    jpeg: bytes
    size: tuple[int, int]


class PicturePicker:
    """Keeps the best, the worst, random images and one of each shard, in one pass over the shards."""

    def __init__(self, num_shards: int) -> None:
        self._best = _Top(_PER_GROUP)
        self._worst = _Top(_PER_GROUP)
        self._random = _Top(_SAMPLE_SIZE)
        step = max(1, -(-num_shards // _PER_GROUP))
        # A single shard would only repeat the other groups.
        self._wanted_shards = frozenset(range(0, num_shards, step)) if num_shards > 1 else frozenset()
        self._num_seen = 0
        self._by_shard: list[Picked] = []

    def add(self, columns: ShardColumns) -> None:
        """Consider a shard's labelled images."""
        labelled = np.flatnonzero(columns.counts)
        if len(labelled) > 0:
            means = np.add.reduceat(columns.scores, columns.offsets[labelled]) / columns.counts[labelled]
            draws = _draws(columns.images["image_id"].take(labelled).to_pylist())

            def pick(position: int) -> Picked:
                return _pick(columns, int(labelled[position]), float(means[position]))

            self._best.add(means, pick)
            self._worst.add(-means, pick)
            self._random.add(draws, pick)
            if self._num_seen in self._wanted_shards:
                self._by_shard.append(pick(int(draws.argmax())))
        self._num_seen += 1

    def groups(self) -> list[PictureGroup]:
        """All groups; the most extreme images come first."""
        return [
            PictureGroup(title="Best", picked=tuple(self._best.ranked())),
            PictureGroup(title="Worst", picked=tuple(self._worst.ranked())),
            PictureGroup(title="Random", picked=tuple(self._random.ranked()[:_PER_GROUP])),
            PictureGroup(title="One per shard", picked=tuple(self._by_shard)),
        ]

    def sample(self) -> list[Picked]:
        """A random sample of the labelled images, larger than the group that is shown."""
        return self._random.ranked()


class PictureMaker:
    """Draws masks on photographs of a corpus, or on plain grey without a photograph.

    `unreadable` counts images that could not be read, `replaced` those that changed after labelling.
    """

    def __init__(self, corpus: Corpus | None, decoding: DecodingConfig) -> None:
        self._corpus = corpus
        self._decoding = decoding
        # Thumbnails by image id, since an image may be in several groups.
        self._photographs: dict[str, NDArray[np.uint8] | None] = {}
        self.unreadable = 0
        self.replaced = 0

    def draw(
        self, record: ImageRecord, instances: Instances | None, sha256: str | None = None
    ) -> Picture | None:
        """A picture of an image; None without a photograph and without masks.

        A photograph whose digest differs from `sha256` is not used.
        """
        photograph = self._photograph(record, sha256)
        if photograph is not None:
            ground, size = photograph, (photograph.shape[0], photograph.shape[1])
        elif instances is not None:
            size = _thumbnail_size(instances.size)
            ground = np.full((*size, 3), _GROUND_GREY, np.uint8)
        else:
            return None
        small = _resize_instances(instances, size) if instances is not None else None
        drawn = draw_instances(ground, select_shown(small) if small is not None else None)
        return Picture(jpeg=encode_jpeg(drawn), size=size)

    def colour_ratios(self, images: Sequence[Picked]) -> NDArray[np.float64]:
        """Colour ratios (see engine.report.colours) of the masks on readable photographs, float64 (M,)."""
        ratios = [np.zeros(0)]
        for image in images:
            photograph = self._photograph(image.record, image.sha256)
            if photograph is not None:
                size = (photograph.shape[0], photograph.shape[1])
                small = _resize_instances(image.instances, size)
                ratios.append(colour_ratios(photograph, decode_rles(small.rles, size)))
        return np.concatenate(ratios)

    def _photograph(self, record: ImageRecord, sha256: str | None) -> NDArray[np.uint8] | None:
        if record.image_id not in self._photographs:
            self._photographs[record.image_id] = self._read(record, sha256)
        return self._photographs[record.image_id]

    def _read(self, record: ImageRecord, sha256: str | None) -> NDArray[np.uint8] | None:
        if self._corpus is None:
            return None
        try:
            data = self._corpus.read(record)
            if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
                self.replaced += 1
                return None
            photograph = Image.fromarray(decode_image(data, self._decoding))
        except (ImageError, TransientError):
            self.unreadable += 1
            return None
        width_height = _thumbnail_size((photograph.height, photograph.width))[::-1]
        return np.asarray(photograph.resize(width_height, Image.Resampling.LANCZOS, reducing_gap=2))


class _Top:
    """The images with the largest values so far; objects are made only for images that enter."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[float, int, Picked]] = []
        self._num_added = 0

    def add(self, values: NDArray[np.floating], pick: Callable[[int], Picked]) -> None:
        for position in np.argsort(-values, kind="stable")[: self._size]:
            value = float(values[position])
            if len(self._heap) == self._size and value <= self._heap[0][0]:
                break
            # Ties go to the earlier image.
            self._num_added += 1
            heapq.heappush(self._heap, (value, -self._num_added, pick(int(position))))
            if len(self._heap) > self._size:
                heapq.heappop(self._heap)

    def ranked(self) -> list[Picked]:
        return [picked for _, _, picked in sorted(self._heap, key=lambda item: item[:2], reverse=True)]


def _draws(image_ids: list[str]) -> NDArray[np.float64]:
    """A pseudo-random number for each image, determined by its id."""
    digests = (hashlib.sha256(image_id.encode()).digest()[:4] for image_id in image_ids)
    return np.array([float(int.from_bytes(digest)) for digest in digests])


def _pick(columns: ShardColumns, row: int, mean_score: float) -> Picked:
    own = slice(columns.offsets[row], columns.offsets[row + 1])
    (image,) = columns.images.slice(row, 1).select(["image_id", "path", "coco_id", "sha256"]).to_pylist()
    sha256 = image.pop("sha256")
    rows = columns.instances.slice(own.start, own.stop - own.start)
    return Picked(
        record=ImageRecord(**image),
        sha256=sha256,
        instances=Instances(
            size=(int(columns.heights[row]), int(columns.widths[row])),
            method=rows["method"][0].as_py(),
            rles=tuple(rle.encode() for rle in rows["rle"].to_pylist()),
            boxes_xyxy=columns.boxes_xyxy[own],
            areas=columns.areas[own],
            scores=columns.scores[own],
            stabilities=columns.stabilities[own],
        ),
        mean_score=mean_score,
        shard=columns.shard,
    )


def _thumbnail_size(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, _LONG_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _resize_instances(instances: Instances, size: tuple[int, int]) -> Instances:
    """Resize instances; one mask at a time is decoded at full size."""
    small = [resize_masks(decode_rles([rle], instances.size), size)[0] for rle in instances.rles]
    masks = np.stack(small) if small else np.zeros((0, *size), bool)
    return Instances(
        size=size,
        method=instances.method,
        rles=encode_rles(masks),
        boxes_xyxy=mask_boxes_xyxy(masks),
        areas=masks.sum(axis=(1, 2)),
        scores=instances.scores,
        stabilities=instances.stabilities,
    )
