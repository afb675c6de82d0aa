"""Colour variance within masks, compared with the same shapes elsewhere in the image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MIN_PIXELS = 20


def colour_ratios(image_hwc: NDArray[np.uint8], masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Ratio of the RGB variance within each mask (N, H, W) to that within its mirror images, float64 (M,).

    The mirror images, left-right and upside down, are the same shape elsewhere, which accounts for the size
    of the mask. The ratio is near 1 for masks placed at random and well below 1 for regions of even colour.
    Masks of fewer than 20 pixels are left out.

    >>> image = np.zeros((8, 8, 3), np.uint8)
    >>> image[4:, 4:] = np.arange(16).reshape(4, 4, 1)
    >>> mask = np.zeros((1, 8, 8), bool)
    >>> mask[0, :4] = True
    >>> colour_ratios(image, mask).tolist()
    [0.0]
    """
    pixels = image_hwc.astype(np.float64)
    ratios = [
        _variance(pixels, mask)
        / max((_variance(pixels, mask[:, ::-1]) + _variance(pixels, mask[::-1])) / 2, 1)
        for mask in masks
        if np.count_nonzero(mask) >= _MIN_PIXELS
    ]
    return np.array(ratios, np.float64)


def _variance(pixels: NDArray[np.float64], mask: NDArray[np.bool_]) -> float:
    """Sum of the variances of the channels within a mask."""
    return float(pixels[mask].var(axis=0).sum())
