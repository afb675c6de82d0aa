"""Random augmentation of training images, drawn from a generator that the caller seeds.

All canvases are squares of one size: a scaled image is cropped or padded at a random position, so a sample
does not depend on the other images of its batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from engine.bounds import Bounded, Positive, Share
from engine.errors import ConfigurationError
from engine.images.resizing import resize_image
from engine.masks.components import resize_masks
from engine.solo.batch import Canvas
from engine.superpixels.graph import resize_labels
from engine.superpixels.hierarchy import number_by_first_pixel


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig(Bounded):
    """Augmentation of training images, which matters most for small corpora."""

    flip: Share = 0.5
    """Share of images that are mirrored horizontally."""
    scales: tuple[Positive, Positive] = (0.5, 1.25)
    """Range of sizes relative to the image fitted into the network's square (multi-scale training)."""
    colour: Share = 0.3
    """Brightness, contrast and saturation are multiplied by 1 - colour to 1 + colour."""
    copy_paste: Share = 0.3
    """Share of images onto which objects of another image are pasted (Ghiasi et al., arXiv 2012.07177)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scales[0] > self.scales[1]:
            raise ConfigurationError(f"scales are the smallest and the largest size, got {self.scales}")

    @classmethod
    def none(cls) -> AugmentationConfig:
        """No augmentation."""
        return cls(flip=0.0, scales=(1.0, 1.0), colour=0.0, copy_paste=0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleImage:
    """An image before augmentation, with a longer side of at most the square's.

    RGB uint8 (H, W, 3), masks bool (N, H, W) with weights float32 (N,) as in `Canvas`, superpixels int32
    (H, W).
    """

    image_hwc: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    weights: NDArray[np.float32]
    superpixels: NDArray[np.int32]


def place_on_canvas(
    image: SampleImage, side: int, config: AugmentationConfig, rng: np.random.Generator
) -> Canvas:
    """Scale and mirror an image, and crop or pad it to a square (side, side)."""
    scale = rng.uniform(*config.scales)
    is_mirrored = rng.random() < config.flip
    height, width = image.superpixels.shape
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    scaled = _resized(image, size)
    if is_mirrored:
        scaled = replace(
            scaled,
            image_hwc=scaled.image_hwc[:, ::-1],
            masks=scaled.masks[:, :, ::-1],
            superpixels=scaled.superpixels[:, ::-1],
        )
    from_rows, to_rows = _window(size[0], side, rng, config)
    from_columns, to_columns = _window(size[1], side, rng, config)
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[to_rows, to_columns] = scaled.image_hwc[from_rows, from_columns]
    masks = np.zeros((len(scaled.masks), side, side), bool)
    masks[:, to_rows, to_columns] = scaled.masks[:, from_rows, from_columns]
    labels = np.full((side, side), -1, np.int32)
    labels[to_rows, to_columns] = number_by_first_pixel(scaled.superpixels[from_rows, from_columns])
    return _drop_hidden(
        Canvas(image_hwc=pixels, shown_hwc=pixels, masks=masks, weights=scaled.weights, superpixels=labels)
    )


def paste_objects(canvas: Canvas, other: Canvas, rng: np.random.Generator) -> Canvas:
    """Paste a random half of the learned objects of another canvas of the same size; drop hidden objects."""
    chosen = (rng.random(len(other.masks)) < 0.5) & (other.weights > 0)
    front: NDArray[np.bool_] = np.any(other.masks[chosen], axis=0)
    if not front.any():
        return canvas
    image = np.where(front[:, :, None], other.image_hwc, canvas.image_hwc)
    labels = np.where(front, other.superpixels + canvas.superpixels.max() + 1, canvas.superpixels)
    on_image = labels >= 0
    labels[on_image] = number_by_first_pixel(labels[on_image][None])[0]
    return _drop_hidden(
        Canvas(
            image_hwc=image,
            shown_hwc=image,
            masks=np.concatenate([canvas.masks & ~front, other.masks[chosen]]),
            weights=np.concatenate([canvas.weights, other.weights[chosen]]),
            superpixels=labels.astype(np.int32),
        )
    )


def change_colours(
    image_hwc: NDArray[np.uint8], strength: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Multiply brightness, contrast and saturation by random factors of 1 - strength to 1 + strength."""
    if strength == 0:
        return image_hwc
    picture = Image.fromarray(image_hwc)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhance(picture).enhance(rng.uniform(1 - strength, 1 + strength))
    return np.asarray(picture)


def _resized(image: SampleImage, size: tuple[int, int]) -> SampleImage:
    if image.superpixels.shape == size:
        return image
    return replace(
        image,
        image_hwc=resize_image(image.image_hwc, size),
        masks=resize_masks(image.masks, size),
        superpixels=resize_labels(image.superpixels, size),
    )


def _window(
    length: int, side: int, rng: np.random.Generator, config: AugmentationConfig
) -> tuple[slice, slice]:
    """The visible pixels along an axis of the image, and their positions along the square's axis."""
    padding = side - length
    # Without scaling, the image is at the same position as in inference.
    start = int(rng.integers(0, abs(padding) + 1)) if config.scales != (1.0, 1.0) else 0
    if padding >= 0:
        return slice(0, length), slice(start, start + length)
    return slice(start, start + side), slice(0, side)


def _drop_hidden(canvas: Canvas) -> Canvas:
    """The canvas without the objects that have no visible pixel."""
    is_visible: NDArray[np.bool_] = np.any(canvas.masks, axis=(1, 2))
    return replace(canvas, masks=canvas.masks[is_visible], weights=canvas.weights[is_visible])
