"""From stored labels and their corpus to samples: what a sample is depends on its number alone."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from engine.corpora import Corpus
from engine.errors import ImageError, StoreError, TransientError
from engine.images.decoding import DecodingConfig, decode_image
from engine.images.resizing import fit_size, resize_image
from engine.masks.components import resize_masks
from engine.masks.rle import decode_rles
from engine.solo.adaptive_targets import AdaptiveLossConfig
from engine.solo.augmentation import (
    AugmentationConfig,
    SampleImage,
    change_colours,
    paste_objects,
    place_on_canvas,
)
from engine.solo.batch import Batch, Canvas, Sample, collate, failed_sample, make_sample
from engine.solo.config import GridConfig
from engine.solo.stability import StabilityRange, stability_range, stability_weights
from engine.solo.superpixel_targets import SuperpixelLossConfig
from engine.store.columns import ShardColumns
from engine.store.pseudo_labels import Version
from engine.store.selection import SelectionConfig, kept_instances, plan_selection
from engine.superpixels import SuperpixelConfig, segment
from engine.superpixels.graph import resize_labels
from engine.superpixels.hierarchy import number_by_first_pixel
from engine.training.order import SampleNumber
from engine.types import ImageRecord, Reason, Status

# Images with a longer side than this, and than the network's, are shrunk before superpixels are cut: that
# takes a second for a million pixels.
_SUPERPIXEL_SIDE = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledImages:
    """The images of a version that training takes, with their instances, as columns. Pickles whole."""

    shards: tuple[ShardColumns, ...]
    learned: tuple[NDArray[np.bool_], ...]
    """Of each shard's instances, which ones are learned, bool (M,); the others are unsure."""
    places: NDArray[np.int32]
    """(N, 2): the shard and the row of each image."""
    stabilities: StabilityRange | None
    """Of all instances that are learned, in whatever image; None where none was measured."""

    def __len__(self) -> int:
        return len(self.places)

    def record(self, index: int) -> ImageRecord:
        """The image's name."""
        shard, row = self.places[index]
        values = self.shards[shard].images.slice(row, 1).to_pylist()[0]
        return ImageRecord(image_id=values["image_id"], path=values["path"], coco_id=values["coco_id"])

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of the image as it was labelled."""
        shard, row = self.places[index]
        return int(self.shards[shard].heights[row]), int(self.shards[shard].widths[row])

    def sha256(self, index: int) -> str | None:
        """Of the file that was labelled, where that is known."""
        shard, row = self.places[index]
        digest: str | None = self.shards[shard].images["sha256"][int(row)].as_py()
        return digest

    def rles(self, index: int) -> tuple[bytes, ...]:
        """Run lengths of the image's instances."""
        shard, rows = self._instances(index)
        texts = self.shards[shard].instances["rle"][rows].to_pylist()
        return tuple(text.encode("ascii") for text in texts)

    def weights(self, index: int, adaptive: AdaptiveLossConfig | None) -> NDArray[np.float32]:
        """What each of the image's N instances counts for, (N,): all alike, or by stability if there is an
        adaptive loss, see `stability_weights`; 0 for those that are unsure.

        Raises StoreError where stabilities are asked for and were not measured.
        """
        shard, rows = self._instances(index)
        weights: NDArray[np.float32] = self.learned[shard][rows].astype(np.float32)
        if adaptive is None:
            return weights
        if self.stabilities is None:
            raise StoreError(
                "the adaptive loss needs labels whose stability was measured, and these have none: take a "
                "round that jobs/self_train.py made, or another --objective.mask-term"
            )
        stabilities = self.shards[shard].stabilities[rows]
        weights *= stability_weights(stabilities, self.stabilities, adaptive.epsilon)
        return weights

    def _instances(self, index: int) -> tuple[int, slice]:
        """The image's shard, and where its instances are in there."""
        shard, row = self.places[index]
        start, stop = self.shards[shard].offsets[row : row + 2]
        return shard, slice(int(start), int(stop))


def list_images(
    version: Version,
    selection: SelectionConfig,
    keep_empty: bool = False,
    held_out: float = 0.0,
    ignore_above_score: float | None = None,
) -> LabelledImages:
    """The images of a version with at least one instance that `selection` takes.

    Instances that it leaves out come along as unsure if they have the score `ignore_above_score` at least.
    `keep_empty` takes those without as well: an image in which the method found nothing, which teaches that
    nothing is there. Rejected images never come, nor does the share `held_out`, see `is_held_out`. Raises
    StoreError where nothing is left.
    """
    plan = plan_selection(version, selection)
    shards: list[ShardColumns] = []
    learned: list[NDArray[np.bool_]] = []
    places: list[NDArray[np.int32]] = []
    for columns in version.columns():
        is_learned = kept_instances(plan, columns.offsets, columns.scores, columns.stabilities)
        is_kept = (
            is_learned if ignore_above_score is None else is_learned | (columns.scores >= ignore_above_score)
        )
        selected = columns.keep_instances(is_kept)
        statuses = np.asarray(selected.images["status"].to_pylist())
        taken = np.bincount(columns.image_of_instance[is_learned], minlength=columns.num_images) > 0
        if keep_empty:
            taken |= statuses != Status.REJECTED.value
        if held_out > 0:
            names = selected.images["image_id"].to_pylist()
            taken &= np.array([not is_held_out(name, held_out) for name in names], bool)
        rows = np.flatnonzero(taken)
        places.append(np.stack([np.full(len(rows), len(shards)), rows], axis=1).astype(np.int32))
        shards.append(selected)
        learned.append(is_learned[is_kept])
    images = LabelledImages(
        shards=tuple(shards),
        learned=tuple(learned),
        places=np.concatenate([np.zeros((0, 2), np.int32), *places]),
        stabilities=stability_range(
            columns.stabilities[those] for columns, those in zip(shards, learned, strict=True)
        ),
    )
    if len(images) == 0:
        raise StoreError(
            f"{version.name} has no image with an instance that is taken: lower --selection.min-score and "
            "the like, or label first"
        )
    return images


def list_held_out(version: Version, share: float) -> list[ImageRecord]:
    """The images of a version, but for rejected ones, that training leaves out."""
    return [
        outcome.record
        for outcome in version.outcomes()
        if outcome.status != Status.REJECTED and is_held_out(outcome.record.image_id, share)
    ]


def is_held_out(image_id: str, share: float) -> bool:
    """Whether an image is left out of training: about this share of all, by the digest of their names.

    >>> sum(is_held_out(f"{number}.jpg", 0.25) for number in range(1000))
    249
    """
    digest = hashlib.blake2b(image_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How images become samples."""

    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    superpixels: SuperpixelConfig = field(default_factory=SuperpixelConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)


@dataclass(frozen=True, kw_only=True)
class SampleTask:
    """What samples are made for: the network's square and grids, and a loss with superpixels, stability and
    boundaries, or without."""

    config: SampleConfig
    side: int
    grid: GridConfig
    superpixel_loss: SuperpixelLossConfig | None
    adaptive_loss: AdaptiveLossConfig | None
    seed: int


class SampleMaker(Dataset[Sample]):
    """Samples of the images of a version, each as one epoch sees it."""

    def __init__(
        self,
        images: LabelledImages,
        corpus: Corpus,
        cache: Path,
        task: SampleTask,
    ) -> None:
        """`cache` is a local folder for shrunk images and their superpixels; processes may share it."""
        self._images = images
        self._corpus = corpus
        self._task = task
        # Whatever decides what is kept decides the folder.
        superpixels = task.config.superpixels if task.superpixel_loss is not None else None
        kept = (corpus.uri, task.side, superpixels, _SUPERPIXEL_SIDE, task.config.decoding)
        self._cache = cache / hashlib.sha256(repr(kept).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: SampleNumber) -> Sample:
        epoch, index = number
        task = self._task
        rng = np.random.default_rng([task.seed, epoch, index])
        image_id = self._images.record(index).image_id
        try:
            scene = self._scene(index, rng)
        except (ImageError, TransientError) as error:
            return failed_sample(image_id, str(error), (task.side, task.side), task.grid)
        if rng.random() < task.config.augmentation.copy_paste:
            scene = self._with_pasted(scene, rng)
        shown = change_colours(scene.image_hwc, task.config.augmentation.colour, rng)
        scene = replace(scene, shown_hwc=shown)
        sample = make_sample(image_id, scene, task.grid, task.superpixel_loss, task.adaptive_loss)
        superpixels = sample.targets.superpixels
        if superpixels is not None and len(superpixels.areas) == 0:
            detail = "it is so thin that nothing of it is left at the mask stride"
            return failed_sample(image_id, detail, (task.side, task.side), task.grid)
        return sample

    def _scene(self, index: int, rng: np.random.Generator) -> Canvas:
        return place_on_canvas(self._source(index), self._task.side, self._task.config.augmentation, rng)

    def _with_pasted(self, scene: Canvas, rng: np.random.Generator) -> Canvas:
        try:
            return paste_objects(scene, self._scene(int(rng.integers(len(self._images))), rng), rng)
        except (ImageError, TransientError):
            # The other image will be said to be unreadable when it is its own turn.
            return scene

    def _source(self, index: int) -> SampleImage:
        """Raises ImageError, TransientError."""
        record, size = self._images.record(index), self._images.size(index)
        sha256 = self._images.sha256(index)
        name = f"{record.image_id}\0{sha256}"
        path = self._cache / f"{hashlib.sha256(name.encode()).hexdigest()}.npz"
        try:
            image, labels, kept_size = _load(path)
        except (OSError, EOFError, ValueError, KeyError, BadZipFile):
            # It is not there, or a machine went away while its disk was written.
            self._keep(path, record, sha256)
            image, labels, kept_size = _load(path)
        if kept_size != size:
            raise ImageError(
                Reason.FAILED, f"the image is {kept_size} now and was {size} when it was labelled"
            )
        masks = resize_masks(decode_rles(self._images.rles(index), size), labels.shape)
        weights = self._images.weights(index, self._task.adaptive_loss)
        return SampleImage(image_hwc=image, masks=masks, weights=weights, superpixels=labels)

    def _keep(self, path: Path, record: ImageRecord, sha256: str | None) -> None:
        data = self._corpus.read(record)
        if sha256 and hashlib.sha256(data).hexdigest() != sha256:
            raise ImageError(Reason.CORRUPT, "the file is not the one that was labelled")
        image = decode_image(data, self._task.config.decoding)
        height, width = image.shape[:2]
        small = resize_image(image, fit_size((height, width), self._task.side))
        if self._task.superpixel_loss is None:
            labels = np.zeros(small.shape[:2], np.int32)
        else:
            labels = cut_superpixels(image, (small.shape[0], small.shape[1]), self._task.config.superpixels)
        sink = io.BytesIO()
        kind = np.min_scalar_type(int(labels.max()))
        np.savez(sink, image=small, superpixels=labels.astype(kind), size=np.array([height, width]))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(sink.getvalue())
        partial.replace(path)


def _load(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int32], tuple[int, int]]:
    """A shrunk image, its superpixels, and the (height, width) that it had."""
    with np.load(path, allow_pickle=False) as arrays:
        height, width = arrays["size"].tolist()
        return arrays["image"], arrays["superpixels"].astype(np.int32), (height, width)


def cut_superpixels(
    image_hwc: NDArray[np.uint8], size: tuple[int, int], config: SuperpixelConfig
) -> NDArray[np.int32]:
    """Superpixels of an image (H, W, 3), cut at its own size and brought to `size` = (height, width).

    Shrunk to 192 pixels first, PennFudan's borders are found less well: of what 300 superpixels make of its
    coarse masks, 0.753 is right (IoU) then, and 0.777 so; the best that they can make is 0.869 and 0.892.
    """
    height, width = image_hwc.shape[:2]
    most = max(_SUPERPIXEL_SIDE, *size)
    if max(height, width) > most:
        image_hwc = resize_image(image_hwc, fit_size((height, width), most))
    return number_by_first_pixel(resize_labels(segment(image_hwc, config), size))


def load_batches(
    maker: SampleMaker, numbers: Iterator[list[SampleNumber]], num_processes: int
) -> Iterator[Batch]:
    """Batches of the samples with these numbers, made by so many processes beside this one, or by it."""
    return iter(
        DataLoader(
            maker,
            batch_sampler=numbers,  # type: ignore[arg-type]
            num_workers=num_processes,
            collate_fn=collate,
            # Forked workers would inherit the threads and locks of torch and Ray.
            multiprocessing_context="spawn" if num_processes else None,
        )
    )
