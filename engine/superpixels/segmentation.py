"""Superpixels of an image by any of the methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from engine.bounds import Bounded, Count, NotNegative, Positive
from engine.errors import ConfigurationError
from engine.superpixels.alternatives import CountSearch, felzenszwalb_at_count, slic_at_count
from engine.superpixels.boundary import BoundaryConfig
from engine.superpixels.hierarchy import HierarchyConfig, build_hierarchy

ImageArray = NDArray[np.integer] | NDArray[np.floating]

SuperpixelMethod = Literal["hierarchy", "slic", "felzenszwalb"]
"""Our hierarchy, or scikit-image's slic or felzenszwalb."""

METHODS: tuple[SuperpixelMethod, ...] = get_args(SuperpixelMethod)


@dataclass(frozen=True, kw_only=True)
class SuperpixelConfig(Bounded):
    """Method and number of superpixels."""

    method: SuperpixelMethod = "hierarchy"
    """Our hierarchy, or scikit-image's slic or felzenszwalb."""
    num_segments: Count = 600
    """Segments per image; the hierarchy gives exactly this number, or one per pixel in smaller images."""
    level: NotNegative | None = None
    """Cut the hierarchy at this height instead of at `num_segments`."""
    boundary: BoundaryConfig = field(default_factory=BoundaryConfig)
    hierarchy: HierarchyConfig = field(default_factory=HierarchyConfig)
    slic_compactness: Positive = 10.0
    """Weight of distance relative to colour difference (scikit-image's default)."""
    felzenszwalb_min_size_px: Count = 20
    """Pixels of the smallest segment (scikit-image's default)."""
    search: CountSearch = field(default_factory=CountSearch)
    """Search by which slic and felzenszwalb, which take no exact number, approach `num_segments`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise ConfigurationError(f"method is one of {', '.join(METHODS)}, got {self.method!r}")
        if self.level is not None and self.method != "hierarchy":
            raise ConfigurationError(f"level cuts the hierarchy; with method {self.method} give num_segments")


def segment(image: ImageArray, config: SuperpixelConfig) -> NDArray[np.int32]:
    """Superpixels of an image, int32 (H, W), numbered 0..K-1 in the order of their first pixels.

    The image is (H, W, 3) sRGB, or (H, W) or (H, W, 1) grey. Integers span the whole range of their unsigned
    type, floats [0, 1]. Segments of the hierarchy and of slic are 4-connected. K is config.num_segments or
    the closest number that the method reached; small or plain images may have fewer. The same image and
    configuration give the same labels.

    Raises ValueError for another shape, dtype or range, and for non-finite values.

    >>> halves = np.zeros((4, 6), np.uint8)
    >>> halves[:, 3:] = 255
    >>> segment(halves, SuperpixelConfig(num_segments=2)).tolist()[0]
    [0, 0, 0, 1, 1, 1]
    """
    image_hwc = to_unit_rgb(image)
    if config.method == "slic":
        return slic_at_count(image_hwc, config.num_segments, config.slic_compactness, config.search)
    if config.method == "felzenszwalb":
        return felzenszwalb_at_count(
            image_hwc, config.num_segments, config.felzenszwalb_min_size_px, config.search
        )
    hierarchy = build_hierarchy(image_hwc, config.boundary, config.hierarchy, config.num_segments)
    if config.level is not None:
        return hierarchy.cut_at_level(config.level)
    return hierarchy.cut_at_count(config.num_segments)


def to_unit_rgb(image: ImageArray) -> NDArray[np.float32]:
    """Convert an image that `segment` accepts to float32 (H, W, 3) in [0, 1]. Raises ValueError.

    >>> to_unit_rgb(np.array([[0, 255]], np.uint8)).tolist()
    [[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]]
    """
    planes = image[..., None] if image.ndim == 2 else image
    if planes.ndim != 3 or planes.shape[2] not in (1, 3) or planes.size == 0:
        raise ValueError(
            f"an image is (H, W), (H, W, 1) or (H, W, 3) with at least one pixel, got {image.shape}"
        )
    if np.issubdtype(planes.dtype, np.unsignedinteger):
        unit = planes.astype(np.float32) / np.float32(2 ** (8 * planes.itemsize) - 1)
    elif np.issubdtype(planes.dtype, np.floating):
        unit = planes.astype(np.float32)
        # Negated, so that NaN fails too.
        if not (unit.min() >= 0 and unit.max() <= 1):
            raise ValueError(f"floating-point images lie in [0, 1], got {unit.min()} to {unit.max()}")
    else:
        raise ValueError(f"an image holds unsigned integers or floats, got {planes.dtype}")
    return np.broadcast_to(unit, (*unit.shape[:2], 3)) if unit.shape[2] == 1 else unit
