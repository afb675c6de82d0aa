"""Resizing of RGB images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def resize_image(image_hwc: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize RGB (H, W, 3) to `size` = (height, width) with Lanczos; the aspect ratio is not kept."""
    resized = Image.fromarray(image_hwc).resize(size[::-1], Image.Resampling.LANCZOS)
    return np.asarray(resized)


def fit_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Scale (height, width) to a longer side of `side`, keeping the aspect ratio, to at least one pixel.

    >>> fit_size((480, 640), 320)
    (240, 320)
    """
    scale = side / max(size)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def fit_image(image_hwc: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Fit an RGB image into the upper left of a black square (side, side, 3)."""
    height, width = fit_size((image_hwc.shape[0], image_hwc.shape[1]), side)
    square = np.zeros((side, side, 3), np.uint8)
    square[:height, :width] = resize_image(image_hwc, (height, width))
    return square
