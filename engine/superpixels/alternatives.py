"""scikit-image's slic and felzenszwalb, brought to a wanted number of segments.

Neither takes an exact number: slic takes a hint and felzenszwalb a scale. Both are run until the count fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import felzenszwalb, slic

from engine.errors import ConfigurationError
from engine.superpixels.hierarchy import number_by_first_pixel


@dataclass(frozen=True, kw_only=True)
class CountSearch:
    """When the number of segments is near enough, and when to give up."""

    tolerance: float = 0.03
    """The search ends when the count is right up to this share."""
    max_runs: int = 8
    """Runs at most; the nearest count wins."""

    def __post_init__(self) -> None:
        if self.tolerance < 0:
            raise ConfigurationError(f"search.tolerance must not be negative, got {self.tolerance}")
        if self.max_runs < 1:
            raise ConfigurationError(f"search.max_runs is at least 1, got {self.max_runs}")


def slic_at_count(
    image_hwc: NDArray[np.float32], num_segments: int, compactness: float, search: CountSearch
) -> NDArray[np.int32]:
    """slic's labels, int32 (H, W), of an sRGB image in [0, 1], with a count as near as the search came.

    Source: Achanta et al., "SLIC superpixels compared to state-of-the-art superpixel methods", PAMI 2012.
    """
    num_pixels = image_hwc.shape[0] * image_hwc.shape[1]

    def run(area: float) -> NDArray[np.int32]:
        hint = min(max(round(num_pixels / area), 1), num_pixels)
        return number_by_first_pixel(slic(image_hwc, n_segments=hint, compactness=compactness, start_label=0))

    return _run_until_near(run, num_pixels / num_segments, num_segments, search)


def felzenszwalb_at_count(
    image_hwc: NDArray[np.float32], num_segments: int, min_size_px: int, search: CountSearch
) -> NDArray[np.int32]:
    """felzenszwalb's labels, int32 (H, W), of an sRGB image in [0, 1], at the scale that gives the count.

    Source: Felzenszwalb, Huttenlocher, "Efficient graph-based image segmentation", IJCV 2004.
    """
    first_scale = 0.3 * image_hwc.shape[0] * image_hwc.shape[1] / num_segments

    def run(scale: float) -> NDArray[np.int32]:
        return number_by_first_pixel(felzenszwalb(image_hwc, scale=scale, min_size=min_size_px))

    return _run_until_near(run, first_scale, num_segments, search)


def _run_until_near(
    run: Callable[[float], NDArray[np.int32]], coarseness: float, num_segments: int, search: CountSearch
) -> NDArray[np.int32]:
    """The labels with the nearest count, of a method whose count falls about as its coarseness grows."""
    best = np.zeros((1, 1), np.int32)
    too_fine, too_coarse = 0.0, math.inf
    for attempt in range(search.max_runs):
        labels = run(coarseness)
        if attempt == 0 or _miss(labels, num_segments) < _miss(best, num_segments):
            best = labels
        if _miss(best, num_segments) <= search.tolerance * num_segments:
            break
        if _count(labels) > num_segments:
            too_fine = max(too_fine, coarseness)
        else:
            too_coarse = min(too_coarse, coarseness)
        coarseness *= _count(labels) / num_segments
        if not too_fine < coarseness < too_coarse:
            coarseness = math.sqrt(too_fine * too_coarse)
    return best


def _count(labels: NDArray[np.int32]) -> int:
    return int(labels.max()) + 1


def _miss(labels: NDArray[np.int32], num_segments: int) -> int:
    return abs(_count(labels) - num_segments)
