"""An image as a network takes it: the whole, and its tiles where there are any, all at one size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.images.decoding import DecodingConfig
from engine.images.resizing import fit_image, resize_image
from engine.images.tiling import TilingConfig, tile_boxes
from engine.masks.boxes import Box


@dataclass(frozen=True, kw_only=True)
class PreparationConfig:
    """What happens to an image before a network sees it; `image_size` is the network's (height, width).

    With `keeps_aspect`, images are fitted into the upper left of a black square instead.
    """

    image_size: tuple[int, int]
    keeps_aspect: bool = False
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    tiling: TilingConfig = field(default_factory=TilingConfig)


@dataclass(frozen=True, kw_only=True, eq=False)
class Crop:
    """The whole of an image of `size` = (height, width), or its tile `box_xyxy`, as the network takes it.

    `resized_hwc` is uint8 RGB at the network's size.
    """

    resized_hwc: NDArray[np.uint8]
    box_xyxy: Box
    size: tuple[int, int]

    @property
    def is_whole(self) -> bool:
        return self.box_xyxy == (0, 0, self.size[1], self.size[0])


def cut_crops(image_hwc: NDArray[np.uint8], config: PreparationConfig) -> Iterator[Crop]:
    """The whole of an RGB image (H, W, 3), then its tiles, row by row, as they are asked for."""
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
