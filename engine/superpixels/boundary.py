"""Boundary strength of every pixel from colour and texture at several scales.

Each cue contributes a quadratic form n'Tn in the normal n of a boundary. All scales and cues therefore add up
to one 2 x 2 matrix per pixel, from which the strength in any direction follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2lab

from engine.bounds import Bounded, Bounds, NotNegative
from engine.errors import ConfigurationError
from engine.superpixels.filters import add_doubled, add_gradients, add_relative_gradients, smooth

# Ranges of CIELAB that cover nearly all colours of photographs; the rest falls into the outermost bins.
_LIGHTNESS_RANGE, _LIGHTNESS_BINS = (0.0, 100.0), 10
_GREEN_RED_RANGE, _GREEN_RED_BINS = (-50.0, 60.0), 11
_BLUE_YELLOW_RANGE, _BLUE_YELLOW_BINS = (-50.0, 70.0), 12
# Texture, on lightness at half resolution: sigma of the smoothing before differentiation, the gradient per
# pixel that counts as half edge and half plain, and the number of edge directions.
_TEXTURE_SMOOTHING_PX, _HALF_GRADIENT, _NUM_DIRECTIONS = 0.7, 3.0, 4

_ColourScale = Annotated[float, Bounds(0.5, what="a number of pixels")]
_WindowScale = Annotated[float, Bounds(1, what="a number of pixels")]


@dataclass(frozen=True, kw_only=True)
class BoundaryConfig(Bounded):
    """Scales are standard deviations in pixels of the image; weights multiply squared strengths.

    The weights were chosen on the training images of BSDS500.
    """

    colour_scales_px: tuple[_ColourScale, ...] = (1.0, 2.0, 4.0)
    """Scales of the colour gradient, in CIELAB / 100."""
    colour_weights: tuple[NotNegative, ...] = (1.0, 1.2, 0.05)
    """Weight of the colour gradient at each of its scales."""
    histogram_scales_px: tuple[_WindowScale, ...] = (4.0, 8.0)
    """Scales of the windows whose colour histograms are compared."""
    lightness_weights: tuple[NotNegative, ...] = (0.006, 0.015)
    """Weight of the lightness histograms at each of the histogram scales."""
    chroma_weights: tuple[NotNegative, ...] = (0.0075, 0.012)
    """Weight of the chroma histograms at each of the histogram scales."""
    texture_scales_px: tuple[_WindowScale, ...] = (4.0, 8.0, 12.0)
    """Scales of the windows whose histograms of edge directions are compared."""
    texture_weights: tuple[NotNegative, ...] = (0.01, 0.05, 0.01)
    """Weight of the texture histograms at each of their scales."""
    placing_weight: NotNegative = 6.0
    """Extra weight of the finest colour scale for the position of boundaries; it does not change their
    strength."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for scales_name, weights_name in (
            ("colour_scales_px", "colour_weights"),
            ("histogram_scales_px", "lightness_weights"),
            ("histogram_scales_px", "chroma_weights"),
            ("texture_scales_px", "texture_weights"),
        ):
            scales, weights = getattr(self, scales_name), getattr(self, weights_name)
            if len(scales) != len(weights):
                raise ConfigurationError(
                    f"{scales_name} has {len(scales)} values and {weights_name} has {len(weights)}: give one "
                    "weight per scale"
                )


def to_lab(image_hwc: NDArray[np.float32]) -> NDArray[np.float32]:
    """CIELAB float32 (3, H, W) of an sRGB image in [0, 1], float32 (H, W, 3); lightness is 0 to 100."""
    return np.ascontiguousarray(rgb2lab(image_hwc).transpose(2, 0, 1), dtype=np.float32)


def boundary_tensor(lab_chw: NDArray[np.float32], config: BoundaryConfig) -> NDArray[np.float32]:
    """Boundary tensor, float32 (H, W, 3), of an image in CIELAB, float32 (3, H, W).

    Its entries are (xx, xy, yy). A boundary with normal n has the strength sqrt(n'Tn), where 0.01 is about
    one unit of CIELAB per pixel. A constant image gives zeros.

    Source: Di Zenzo, CVGIP 1986, for the colour gradient; Martin, Fowlkes, Malik, PAMI 2004, for the
    histograms of brightness, colour and texture on both sides of a boundary, here with Gaussian windows in
    place of half-discs and bins of edge direction in place of textons; Arbeláez, Maire, Fowlkes, Malik, PAMI
    2011, eq. 6, for the sum over scales.
    """
    tensor = np.zeros((*lab_chw.shape[1:], 3), np.float32)
    for scale_px, weight in zip(config.colour_scales_px, config.colour_weights, strict=True):
        _add_colour(lab_chw, scale_px, weight, tensor)
    add_doubled(_histogram_tensor(_halve(lab_chw), config), tensor)
    return tensor


def placing_tensor(
    tensor: NDArray[np.float32], lab_chw: NDArray[np.float32], config: BoundaryConfig
) -> NDArray[np.float32]:
    """The boundary tensor with more weight on the finest colour gradient, float32 (H, W, 3).

    Wide windows detect boundaries best, narrow ones locate them best.
    """
    sharpened = tensor.copy()
    if config.colour_scales_px:
        _add_colour(lab_chw, config.colour_scales_px[0], config.placing_weight, sharpened)
    return sharpened


def _add_colour(
    lab_chw: NDArray[np.float32], scale_px: float, weight: float, tensor: NDArray[np.float32]
) -> None:
    """Add the colour gradient of one scale in place.

    The factor scale² makes the response to a step edge independent of the scale.
    """
    for plane in lab_chw:
        add_gradients(smooth(plane, scale_px), weight * scale_px**2 / 1e4, tensor)


def _histogram_tensor(lab_chw: NDArray[np.float32], config: BoundaryConfig) -> NDArray[np.float32]:
    """The tensor of the histogram cues, at half resolution, which takes a quarter of the time."""
    lightness, green_red, blue_yellow = lab_chw
    chroma = [
        *_soft_bins(green_red, _GREEN_RED_RANGE, _GREEN_RED_BINS),
        *_soft_bins(blue_yellow, _BLUE_YELLOW_RANGE, _BLUE_YELLOW_BINS),
    ]
    tensor = np.zeros((*lightness.shape, 3), np.float32)
    cues = (
        (
            _soft_bins(lightness, _LIGHTNESS_RANGE, _LIGHTNESS_BINS),
            config.histogram_scales_px,
            config.lightness_weights,
        ),
        (chroma, config.histogram_scales_px, config.chroma_weights),
        (_direction_bins(lightness), config.texture_scales_px, config.texture_weights),
    )
    for bins, scales_px, weights in cues:
        for scale_px, weight in zip(scales_px, weights, strict=True):
            for plane in bins:
                add_relative_gradients(smooth(plane, scale_px / 2), weight * (scale_px / 2) ** 2, tensor)
    return tensor


def _halve(planes_chw: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of 2 x 2 pixels; an odd last row or column is repeated."""
    height, width = planes_chw.shape[1:]
    padded = np.pad(planes_chw, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    blocks = padded.reshape(len(padded), padded.shape[1] // 2, 2, padded.shape[2] // 2, 2)
    return np.ascontiguousarray(blocks.mean(axis=(2, 4)))


def _soft_bins(
    plane: NDArray[np.float32], value_range: tuple[float, float], num_bins: int
) -> list[NDArray[np.float32]]:
    """Membership of each pixel in bins over `value_range`: split between the two nearest bins, with sum 1.

    Empty bins are left out.
    """
    low, high = value_range
    position = np.clip((plane - low) * ((num_bins - 1) / (high - low)), 0, num_bins - 1)
    bins = [np.maximum(0, 1 - np.abs(position - index)).astype(np.float32) for index in range(num_bins)]
    return [membership for membership in bins if membership.any()]


def _direction_bins(lightness: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Membership of each pixel in "plain" and in the edge directions, with sum 1; they stand for textons."""
    padded = np.pad(smooth(lightness, _TEXTURE_SMOOTHING_PX), 1, mode="edge")
    along_y = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2
    along_x = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2
    gradient = np.hypot(along_x, along_y)
    edge = gradient / (gradient + _HALF_GRADIENT)
    direction = np.mod(np.arctan2(along_y, along_x), np.pi) * (_NUM_DIRECTIONS / np.pi)
    bins = [(1 - edge).astype(np.float32)]
    for index in range(_NUM_DIRECTIONS):
        distance = np.abs(direction - index)
        distance = np.minimum(distance, _NUM_DIRECTIONS - distance)
        bins.append((edge * np.maximum(0, 1 - distance)).astype(np.float32))
    return bins
