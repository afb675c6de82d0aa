"""What training changes in an image, drawn from a generator that the caller seeds.

Scenes keep to one square: a scaled image is cut or laid somewhere on it, so that what is seen of it does not
depend on the other images of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from engine.errors import ConfigurationError
from engine.images.resizing import resize_image
from engine.masks.components import resize_masks
from engine.solo.batch import Canvas
from engine.superpixels.graph import resize_labels
from engine.superpixels.hierarchy import number_by_first_pixel


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """How images are changed; none of it is needed to learn, all of it to learn from few images."""

    flip: float = 0.5
    """Share of images that are mirrored."""
    scales: tuple[float, float] = (0.5, 1.25)
    """Sizes from .. to, relative to the image fitted into the network's square (multi-scale training)."""
    colour: float = 0.3
    """Brightness, contrast and saturation are multiplied by up to 1 plus or minus this."""
    copy_paste: float = 0.3
    """Share of images onto which objects of another image are pasted (Ghiasi et al., arXiv 2012.07177)."""

    def __post_init__(self) -> None:
        for name in ("flip", "colour", "copy_paste"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"augmentation.{name} is 0 to 1, got {getattr(self, name)}")
        if not 0 < self.scales[0] <= self.scales[1]:
            raise ConfigurationError(f"augmentation.scales are two rising sizes above 0, got {self.scales}")

    @classmethod
    def none(cls) -> AugmentationConfig:
        """Images as they are."""
        return cls(flip=0.0, scales=(1.0, 1.0), colour=0.0, copy_paste=0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """An image as it is kept: uint8 RGB (H, W, 3) with a longer side of at most the square's, masks bool
    (N, H, W) and what each counts for, float32 (N,), as in `Canvas`, superpixels int32 (H, W)."""

    image_hwc: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    weights: NDArray[np.float32]
    superpixels: NDArray[np.int32]


def place_on_canvas(
    source: Source, side: int, config: AugmentationConfig, rng: np.random.Generator
) -> Canvas:
    """The source scaled, mirrored and laid on a square (side, side), or a part of it where it is larger."""
    scale = rng.uniform(*config.scales)
    is_mirrored = rng.random() < config.flip
    height, width = source.superpixels.shape
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    scaled = _resized(source, size)
    if is_mirrored:
        scaled = Source(
            image_hwc=scaled.image_hwc[:, ::-1],
            masks=scaled.masks[:, :, ::-1],
            weights=scaled.weights,
            superpixels=scaled.superpixels[:, ::-1],
        )
    from_rows, to_rows = _window(size[0], side, rng, config)
    from_columns, to_columns = _window(size[1], side, rng, config)
    image = np.zeros((side, side, 3), np.uint8)
    image[to_rows, to_columns] = scaled.image_hwc[from_rows, from_columns]
    masks = np.zeros((len(scaled.masks), side, side), bool)
    masks[:, to_rows, to_columns] = scaled.masks[:, from_rows, from_columns]
    labels = np.full((side, side), -1, np.int32)
    labels[to_rows, to_columns] = number_by_first_pixel(scaled.superpixels[from_rows, from_columns])
    return _drop_hidden(
        Canvas(image_hwc=image, shown_hwc=image, masks=masks, weights=scaled.weights, superpixels=labels)
    )


def paste_objects(scene: Canvas, other: Canvas, rng: np.random.Generator) -> Canvas:
    """The scene with some of the learned objects of the other in front of its own; both are of one size.

    Objects that are hidden altogether are no longer there.
    """
    chosen = (rng.random(len(other.masks)) < 0.5) & (other.weights > 0)
    front: NDArray[np.bool_] = np.any(other.masks[chosen], axis=0)
    if not front.any():
        return scene
    image = np.where(front[:, :, None], other.image_hwc, scene.image_hwc)
    labels = np.where(front, other.superpixels + scene.superpixels.max() + 1, scene.superpixels)
    on_image = labels >= 0
    labels[on_image] = number_by_first_pixel(labels[on_image][None])[0]
    return _drop_hidden(
        Canvas(
            image_hwc=image,
            shown_hwc=image,
            masks=np.concatenate([scene.masks & ~front, other.masks[chosen]]),
            weights=np.concatenate([scene.weights, other.weights[chosen]]),
            superpixels=labels.astype(np.int32),
        )
    )


def change_colours(
    image_hwc: NDArray[np.uint8], strength: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Brightness, contrast and saturation multiplied by 1 - strength .. 1 + strength."""
    if strength == 0:
        return image_hwc
    picture = Image.fromarray(image_hwc)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhance(picture).enhance(rng.uniform(1 - strength, 1 + strength))
    return np.asarray(picture)


def _resized(source: Source, size: tuple[int, int]) -> Source:
    if source.superpixels.shape == size:
        return source
    return Source(
        image_hwc=resize_image(source.image_hwc, size),
        masks=resize_masks(source.masks, size),
        weights=source.weights,
        superpixels=resize_labels(source.superpixels, size),
    )


def _window(
    length: int, side: int, rng: np.random.Generator, config: AugmentationConfig
) -> tuple[slice, slice]:
    """Which pixels of an axis are seen, and where on the square's axis they lie."""
    spare = side - length
    # Without scaling there is nothing to move for: the image lies where inference lays it.
    start = int(rng.integers(0, abs(spare) + 1)) if config.scales != (1.0, 1.0) else 0
    if spare >= 0:
        return slice(0, length), slice(start, start + length)
    return slice(start, start + side), slice(0, side)


def _drop_hidden(scene: Canvas) -> Canvas:
    """The scene without the objects of which no pixel is left."""
    is_seen: NDArray[np.bool_] = np.any(scene.masks, axis=(1, 2))
    return replace(scene, masks=scene.masks[is_seen], weights=scene.weights[is_seen])
