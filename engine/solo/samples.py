"""Training samples of SOLO: an image and its labels, augmented, as a pure function of the sample's number."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from engine.corpora import Corpus
from engine.errors import ImageError, TransientError
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
from engine.solo.batch import Canvas, Sample, failed_sample, make_sample
from engine.solo.config import GridConfig
from engine.solo.labelled_images import LabelledImages
from engine.solo.superpixel_targets import SuperpixelLossConfig
from engine.superpixels import SuperpixelConfig, segment
from engine.superpixels.graph import resize_labels
from engine.superpixels.hierarchy import number_by_first_pixel
from engine.training.image_cache import Arrays, ImageCache
from engine.training.order import SampleNumber
from engine.types import ImageRecord, Reason

# Superpixels of a million pixels take a second: images with a longer side than this, and than the network's,
# are shrunk first.
_SUPERPIXEL_SIDE = 1024


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How images become samples."""

    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    superpixels: SuperpixelConfig = field(default_factory=SuperpixelConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)


@dataclass(frozen=True, kw_only=True)
class SampleTask:
    """The network's square and grids, and the losses that need superpixels, stability or boundaries."""

    config: SampleConfig
    side: int
    grid: GridConfig
    superpixel_loss: SuperpixelLossConfig | None
    adaptive_loss: AdaptiveLossConfig | None
    seed: int


class SampleMaker(Dataset[Sample]):
    """The samples of a version's images."""

    def __init__(self, images: LabelledImages, corpus: Corpus, cache: Path, task: SampleTask) -> None:
        """`cache` is a local folder for shrunk images and their superpixels, see `ImageCache`."""
        self._images = images
        self._corpus = corpus
        self._task = task
        superpixels = task.config.superpixels if task.superpixel_loss is not None else None
        settings = (corpus.uri, task.side, superpixels, _SUPERPIXEL_SIDE, task.config.decoding)
        self._cache = ImageCache(cache, settings)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: SampleNumber) -> Sample:
        """The sample; an image that cannot be read gives one that teaches nothing and says why."""
        epoch, index = number
        task = self._task
        rng = np.random.default_rng([task.seed, epoch, index])
        image_id = self._images.record(index).image_id
        try:
            canvas = self._canvas(index, rng)
        except (ImageError, TransientError) as error:
            return failed_sample(image_id, str(error), (task.side, task.side), task.grid)
        if rng.random() < task.config.augmentation.copy_paste:
            canvas = self._with_pasted(canvas, rng)
        shown = change_colours(canvas.image_hwc, task.config.augmentation.colour, rng)
        canvas = replace(canvas, shown_hwc=shown)
        sample = make_sample(image_id, canvas, task.grid, task.superpixel_loss, task.adaptive_loss)
        superpixels = sample.targets.superpixels
        if superpixels is not None and len(superpixels.areas) == 0:
            detail = "the image is so thin that nothing of it is left at the mask stride"
            return failed_sample(image_id, detail, (task.side, task.side), task.grid)
        return sample

    def _canvas(self, index: int, rng: np.random.Generator) -> Canvas:
        return place_on_canvas(self._image(index), self._task.side, self._task.config.augmentation, rng)

    def _with_pasted(self, canvas: Canvas, rng: np.random.Generator) -> Canvas:
        try:
            return paste_objects(canvas, self._canvas(int(rng.integers(len(self._images))), rng), rng)
        except (ImageError, TransientError):
            # The other image is reported as unreadable in its own sample.
            return canvas

    def _image(self, index: int) -> SampleImage:
        """The image at the network's size, with its instances. Raises ImageError, TransientError."""
        record, size = self._images.record(index), self._images.size(index)
        sha256 = self._images.sha256(index)
        arrays = self._cache.read(f"{record.image_id}\0{sha256}", lambda: self._prepare(record, sha256))
        height, width = arrays["size"].tolist()
        if (height, width) != size:
            raise ImageError(
                Reason.FAILED, f"the image is {(height, width)} now and was {size} when it was labelled"
            )
        labels = arrays["superpixels"].astype(np.int32)
        return SampleImage(
            image_hwc=arrays["image"],
            masks=resize_masks(decode_rles(self._images.rles(index), size), labels.shape),
            weights=self._images.weights(index, self._task.adaptive_loss),
            superpixels=labels,
        )

    def _prepare(self, record: ImageRecord, sha256: str | None) -> Arrays:
        """The shrunk image, its superpixels, and the (height, width) of the file."""
        data = self._corpus.read(record)
        if sha256 and hashlib.sha256(data).hexdigest() != sha256:
            raise ImageError(Reason.CORRUPT, "the file is not the one that was labelled")
        image = decode_image(data, self._task.config.decoding)
        height, width = image.shape[:2]
        size = fit_size((height, width), self._task.side)
        if self._task.superpixel_loss is None:
            labels = np.zeros(size, np.int32)
        else:
            labels = cut_superpixels(image, size, self._task.config.superpixels)
        return {
            "image": resize_image(image, size),
            "superpixels": labels.astype(np.min_scalar_type(int(labels.max()))),
            "size": np.array([height, width]),
        }


def cut_superpixels(
    image_hwc: NDArray[np.uint8],
    size: tuple[int, int],
    config: SuperpixelConfig,
    max_side: int = _SUPERPIXEL_SIDE,
) -> NDArray[np.int32]:
    """Superpixels of an image (H, W, 3), computed at its own size and resized to `size` = (height, width).

    Images with a side above `max_side`, and above those of `size`, are shrunk first. Not further: at 192
    pixels, borders in PennFudan are found less well. The masks that 300 superpixels make of its coarse ones
    then have a mean IoU of 0.753 instead of 0.777, and the best possible ones 0.869 instead of 0.892.
    """
    height, width = image_hwc.shape[:2]
    side = max(max_side, *size)
    if max(height, width) > side:
        image_hwc = resize_image(image_hwc, fit_size((height, width), side))
    return number_by_first_pixel(resize_labels(segment(image_hwc, config), size))
