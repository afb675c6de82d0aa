"""The images and instances of a version of labels that a training learns from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import StoreError
from engine.solo.adaptive_targets import AdaptiveLossConfig
from engine.solo.stability import StabilityRange, stability_range, stability_weights
from engine.store.columns import ShardColumns
from engine.store.pseudo_labels import Version
from engine.store.selection import SelectionConfig, kept_instances, plan_selection
from engine.types import ImageRecord, Status


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledImages:
    """N images with their instances, as columns; cheap to pickle."""

    shards: tuple[ShardColumns, ...]
    is_learned: tuple[NDArray[np.bool_], ...]
    """Per shard, which of its M instances are learned, bool (M,); the others are ignored."""
    locations: NDArray[np.int32]
    """Shard and row of each image, (N, 2)."""
    stabilities: StabilityRange | None
    """Range over all learned instances; None if no stability was measured."""

    def __len__(self) -> int:
        return len(self.locations)

    def record(self, index: int) -> ImageRecord:
        """The image's record in its corpus."""
        shard, row = self.locations[index]
        values = self.shards[shard].images.slice(row, 1).to_pylist()[0]
        return ImageRecord(image_id=values["image_id"], path=values["path"], coco_id=values["coco_id"])

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of the image when it was labelled."""
        shard, row = self.locations[index]
        return int(self.shards[shard].heights[row]), int(self.shards[shard].widths[row])

    def sha256(self, index: int) -> str | None:
        """Digest of the file that was labelled; None if the version does not know it."""
        shard, row = self.locations[index]
        digest: str | None = self.shards[shard].images["sha256"][int(row)].as_py()
        return digest

    def rles(self, index: int) -> tuple[bytes, ...]:
        """Run lengths of the image's instances."""
        shard, rows = self._instances(index)
        texts = self.shards[shard].instances["rle"][rows].to_pylist()
        return tuple(text.encode("ascii") for text in texts)

    def weights(self, index: int, adaptive: AdaptiveLossConfig | None) -> NDArray[np.float32]:
        """Loss weights of the image's instances, (N,): 0 if ignored, otherwise 1, or by stability for an
        adaptive loss, see `stability_weights`.

        Raises StoreError if the adaptive loss is asked for and no stability was measured.
        """
        shard, rows = self._instances(index)
        weights: NDArray[np.float32] = self.is_learned[shard][rows].astype(np.float32)
        if adaptive is None:
            return weights
        if self.stabilities is None:
            raise StoreError(
                "the adaptive loss needs labels with measured stability, and these have none: take a round "
                "that jobs/self_train.py made, or another objective.mask_term"
            )
        stabilities = self.shards[shard].stabilities[rows]
        weights *= stability_weights(stabilities, self.stabilities, adaptive.epsilon)
        return weights

    def _instances(self, index: int) -> tuple[int, slice]:
        """The image's shard, and the rows of its instances there."""
        shard, row = self.locations[index]
        start, stop = self.shards[shard].offsets[row : row + 2]
        return shard, slice(int(start), int(stop))


def list_images(
    version: Version,
    selection: SelectionConfig,
    keep_empty: bool = False,
    held_out: float = 0.0,
    ignore_above_score: float | None = None,
) -> LabelledImages:
    """The images of a version with at least one selected instance.

    With `keep_empty`, images without one come as well, as negatives. Rejected images never come, nor does the
    share `held_out`, see `is_held_out`. Unselected instances with a score of at least `ignore_above_score`
    come as ignored ones. Raises StoreError if no image is left.
    """
    plan = plan_selection(version, selection)
    shards: list[ShardColumns] = []
    learned: list[NDArray[np.bool_]] = []
    locations: list[NDArray[np.int32]] = []
    for columns in version.columns():
        is_learned = kept_instances(plan, columns.offsets, columns.scores, columns.stabilities)
        is_kept = is_learned
        if ignore_above_score is not None:
            is_kept = is_learned | (columns.scores >= ignore_above_score)
        rows = _taken_rows(columns, is_learned, keep_empty, held_out)
        locations.append(np.stack([np.full(len(rows), len(shards)), rows], axis=1).astype(np.int32))
        shards.append(columns.keep_instances(is_kept))
        learned.append(is_learned[is_kept])
    if sum(map(len, locations)) == 0:
        raise StoreError(
            f"{version.name} has no image with a selected instance: lower selection.min_score and the like, "
            "or label first"
        )
    return LabelledImages(
        shards=tuple(shards),
        is_learned=tuple(learned),
        locations=np.concatenate(locations),
        stabilities=stability_range(
            columns.stabilities[those] for columns, those in zip(shards, learned, strict=True)
        ),
    )


def _taken_rows(
    columns: ShardColumns, is_learned: NDArray[np.bool_], keep_empty: bool, held_out: float
) -> NDArray[np.int64]:
    """Rows of a shard's images that are trained on."""
    is_taken = np.bincount(columns.image_of_instance[is_learned], minlength=columns.num_images) > 0
    if keep_empty:
        is_taken |= np.asarray(columns.images["status"].to_pylist()) != Status.REJECTED.value
    if held_out > 0:
        names = columns.images["image_id"].to_pylist()
        is_taken &= np.array([not is_held_out(name, held_out) for name in names], bool)
    return np.flatnonzero(is_taken)


def list_held_out(version: Version, share: float) -> list[ImageRecord]:
    """The images of a version that are kept from training, without rejected ones."""
    return [
        outcome.record
        for outcome in version.outcomes()
        if outcome.status != Status.REJECTED and is_held_out(outcome.record.image_id, share)
    ]


def is_held_out(image_id: str, share: float) -> bool:
    """Whether an image is kept from training: about this share of all images, by the digest of their ids.

    Exports split by another digest (engine/export/split.py). Neither can change without moving images between
    the parts of earlier trainings and exports.

    >>> sum(is_held_out(f"{number}.jpg", 0.25) for number in range(1000))
    249
    """
    digest = hashlib.blake2b(image_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64
