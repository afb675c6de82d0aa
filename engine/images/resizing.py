"""Resizing of RGB images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def resize_image(image_hwc: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """RGB (H, W, 3) brought to `size` = (height, width) with Lanczos, the aspect not kept (METHODS 1)."""
    resized = Image.fromarray(image_hwc).resize(size[::-1], Image.Resampling.LANCZOS)
    return np.asarray(resized)


def fit_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) brought to a longer side of `side`, the aspect kept, at least one pixel.

    >>> fit_size((480, 640), 320)
    (240, 320)
    """
    scale = side / max(size)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def fit_image(image_hwc: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """An RGB image fitted into the upper left of a black square (side, side, 3)."""
    height, width = fit_size((image_hwc.shape[0], image_hwc.shape[1]), side)
    square = np.zeros((side, side, 3), np.uint8)
    square[:height, :width] = resize_image(image_hwc, (height, width))
    return square
