"""scikit-image's slic and felzenszwalb at a requested number of segments.

Neither takes an exact number: slic takes an approximate one and felzenszwalb a scale. Both run repeatedly
until the number of segments is close enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import felzenszwalb, slic

from engine.bounds import Bounded, Count, NotNegative
from engine.superpixels.hierarchy import number_by_first_pixel


@dataclass(frozen=True, kw_only=True)
class CountSearch(Bounded):
    """Stopping rule of the search for a number of segments."""

    tolerance: NotNegative = 0.03
    """Relative error of the number of segments at which the search stops."""
    max_runs: Count = 8
    """Maximum number of runs; the closest result is returned."""


def slic_at_count(
    image_hwc: NDArray[np.float32], num_segments: int, compactness: float, search: CountSearch
) -> NDArray[np.int32]:
    """Labels int32 (H, W) by slic of an sRGB image in [0, 1], with close to `num_segments` segments.

    Source: Achanta et al., "SLIC superpixels compared to state-of-the-art superpixel methods", PAMI 2012.
    """
    num_pixels = image_hwc.shape[0] * image_hwc.shape[1]

    def run(area: float) -> NDArray[np.int32]:
        hint = min(max(round(num_pixels / area), 1), num_pixels)
        return number_by_first_pixel(slic(image_hwc, n_segments=hint, compactness=compactness, start_label=0))

    return _search_count(run, num_pixels / num_segments, num_segments, search)


def felzenszwalb_at_count(
    image_hwc: NDArray[np.float32], num_segments: int, min_size_px: int, search: CountSearch
) -> NDArray[np.int32]:
    """Labels int32 (H, W) by felzenszwalb of an sRGB image in [0, 1], with close to `num_segments` segments.

    Source: Felzenszwalb, Huttenlocher, "Efficient graph-based image segmentation", IJCV 2004.
    """
    first_scale = 0.3 * image_hwc.shape[0] * image_hwc.shape[1] / num_segments

    def run(scale: float) -> NDArray[np.int32]:
        return number_by_first_pixel(felzenszwalb(image_hwc, scale=scale, min_size=min_size_px))

    return _search_count(run, first_scale, num_segments, search)


def _search_count(
    run: Callable[[float], NDArray[np.int32]], coarseness: float, num_segments: int, search: CountSearch
) -> NDArray[np.int32]:
    """The labels with the closest count; `run` gives fewer segments the larger the coarseness."""
    best = np.zeros((1, 1), np.int32)
    lower, upper = 0.0, math.inf
    for attempt in range(search.max_runs):
        labels = run(coarseness)
        if attempt == 0 or _count_error(labels, num_segments) < _count_error(best, num_segments):
            best = labels
        if _count_error(best, num_segments) <= search.tolerance * num_segments:
            break
        if _count(labels) > num_segments:
            lower = max(lower, coarseness)
        else:
            upper = min(upper, coarseness)
        coarseness *= _count(labels) / num_segments
        if not lower < coarseness < upper:
            coarseness = math.sqrt(lower * upper)
    return best


def _count(labels: NDArray[np.int32]) -> int:
    return int(labels.max()) + 1


def _count_error(labels: NDArray[np.int32], num_segments: int) -> int:
    return abs(_count(labels) - num_segments)
