"""Crops: the whole of an image and its tiles, all resized to what a network takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.images.decoding import DecodingConfig
from engine.images.resizing import fit_image, resize_image
from engine.images.tiling import TilingConfig, tile_boxes
from engine.masks.boxes import Box

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PreparationConfig:
    """How an image becomes crops of `image_size` = (height, width).

    With `keeps_aspect`, crops are fitted into the upper left of a black square; otherwise they are stretched.
    """

    image_size: tuple[int, int]
    keeps_aspect: bool = False
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    tiling: TilingConfig = field(default_factory=TilingConfig)


@dataclass(frozen=True, kw_only=True, eq=False)
class Crop:
    """The whole of an image of `size` = (height, width), or its tile `box_xyxy`.

    `resized_hwc` is uint8 RGB at the size that the network takes.
    """

    resized_hwc: NDArray[np.uint8]
    box_xyxy: Box
    size: tuple[int, int]

    @classmethod
    def whole(cls, resized_hwc: NDArray[np.uint8], size: tuple[int, int]) -> Crop:
        """The whole of an image of `size`."""
        return cls(resized_hwc=resized_hwc, box_xyxy=(0, 0, size[1], size[0]), size=size)

    @property
    def is_whole(self) -> bool:
        """Whether the crop is the whole image rather than a tile."""
        return self.box_xyxy == (0, 0, self.size[1], self.size[0])


def cut_crops(image_hwc: NDArray[np.uint8], config: PreparationConfig) -> Iterator[Crop]:
    """Yield the whole of an RGB image (H, W, 3), then its tiles, row by row."""
    size = (image_hwc.shape[0], image_hwc.shape[1])
    for box in [(0, 0, size[1], size[0]), *tile_boxes(size, config.tiling)]:
        x0, y0, x1, y1 = box
        part = np.ascontiguousarray(image_hwc[y0:y1, x0:x1])
        resized = (
            fit_image(part, config.image_size[0])
            if config.keeps_aspect
            else resize_image(part, config.image_size)
        )
        yield Crop(resized_hwc=resized, box_xyxy=box, size=size)


def group_by_image(items: Iterable[tuple[Crop, T]]) -> Iterator[Iterator[tuple[Crop, T]]]:
    """Split crops, each with something that belongs to it, into images: an image begins with its whole.

    An image's crops are to be taken before the next image.

    >>> black = np.zeros((1, 1, 3), np.uint8)
    >>> whole, tile = Crop.whole(black, (1, 2)), Crop(resized_hwc=black, box_xyxy=(1, 0, 2, 1), size=(1, 2))
    >>> images = group_by_image([(whole, "a"), (tile, "b"), (whole, "c")])
    >>> [[name for _, name in image] for image in images]
    [['a', 'b'], ['c']]
    """
    number = 0

    def number_of_image(item: tuple[Crop, T]) -> int:
        nonlocal number
        number += item[0].is_whole
        return number

    return (image for _, image in groupby(items, number_of_image))


def split_batches(items: Iterable[T], batch_size: int) -> Iterator[list[T]]:
    """Split items into lists of `batch_size`, the last of which may be shorter; they are taken as needed."""
    remaining = iter(items)
    while batch := list(islice(remaining, batch_size)):
        yield batch
