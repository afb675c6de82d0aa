"""Which images a report shows, and how."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
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
from engine.report.drawing import draw_instances, encode_jpeg
from engine.store.columns import ShardColumns
from engine.types import ImageRecord

_PER_GROUP = 8
_LONG_SIDE = 400
_GROUND = 214


@dataclass(frozen=True, kw_only=True, eq=False)
class Picked:
    """A labelled image that a report shows; `sha256` is of the file that was labelled, `mean_score` that of
    its masks."""

    record: ImageRecord
    sha256: str
    instances: Instances
    mean_score: float
    shard: int


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A small JPEG, (height, width) of it, and whether the photograph is below the masks."""

    jpeg: bytes
    size: tuple[int, int]
    has_photograph: bool


class PicturePicker:
    """Looks at shard after shard and keeps the best, the worst, some by chance, and one of each shard."""

    def __init__(self, num_shards: int) -> None:
        self._best = _Top()
        self._worst = _Top()
        self._random = _Top()
        step = max(1, -(-num_shards // _PER_GROUP))
        # One shard would show once more what is shown already.
        self._wanted_shards = frozenset(range(0, num_shards, step)) if num_shards > 1 else frozenset()
        self._num_seen = 0
        self._by_shard: list[Picked] = []

    def add(self, columns: ShardColumns) -> None:
        """Take notice of a shard's labelled images."""
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

    def groups(self) -> list[tuple[str, list[Picked]]]:
        """Titles and images, of which the first of each group are the most extreme."""
        return [
            ("Best", self._best.ranked()),
            ("Worst", self._worst.ranked()),
            ("By chance", self._random.ranked()),
            ("Shard by shard", self._by_shard),
        ]


class PictureMaker:
    """Draws masks on photographs of a corpus, or on a plain ground where there is none to be had.

    `unreadable` counts the images that cannot be read, `replaced` those that are no longer what was labelled.
    """

    def __init__(self, corpus: Corpus | None, decoding: DecodingConfig) -> None:
        self._corpus = corpus
        self._decoding = decoding
        # Small photographs by image id: one image may be among the best and be taken by chance, too.
        self._photographs: dict[str, NDArray[np.uint8] | None] = {}
        self.unreadable = 0
        self.replaced = 0

    def draw(
        self, record: ImageRecord, instances: Instances | None, sha256: str | None = None
    ) -> Picture | None:
        """A picture; None where there is neither a photograph nor masks. Masks are drawn on no other
        photograph than that of `sha256`."""
        if record.image_id not in self._photographs:
            self._photographs[record.image_id] = self._read(record, sha256)
        photograph = self._photographs[record.image_id]
        if photograph is not None:
            ground, size = photograph, (photograph.shape[0], photograph.shape[1])
        elif instances is not None:
            size = _thumbnail_size(instances.size)
            ground = np.full((*size, 3), _GROUND, np.uint8)
        else:
            return None
        small = _resize_instances(instances, size) if instances is not None else None
        drawn = draw_instances(ground, small)
        return Picture(jpeg=encode_jpeg(drawn), size=size, has_photograph=photograph is not None)

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
    """The images with the largest values so far; only those that enter are made objects of."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Picked]] = []
        self._num_added = 0

    def add(self, values: NDArray[np.floating], pick: Callable[[int], Picked]) -> None:
        for position in np.argsort(-values, kind="stable")[:_PER_GROUP]:
            value = float(values[position])
            if len(self._heap) == _PER_GROUP and value <= self._heap[0][0]:
                break
            # Of equal values the earlier image counts more.
            self._num_added += 1
            heapq.heappush(self._heap, (value, -self._num_added, pick(int(position))))
            if len(self._heap) > _PER_GROUP:
                heapq.heappop(self._heap)

    def ranked(self) -> list[Picked]:
        return [picked for _, _, picked in sorted(self._heap, key=lambda item: item[:2], reverse=True)]


def _draws(image_ids: list[str]) -> NDArray[np.float64]:
    """A number for each image by which chance takes it, the same whenever it is asked."""
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
    """The masks at another size; one at a time is held at full size."""
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
