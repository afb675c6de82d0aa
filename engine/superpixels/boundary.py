"""How strongly each pixel looks like the border of something: colour and texture, over several scales.

Everything that speaks for a border is a quadratic form n'Tn in the border's normal n, so that all scales and
cues add up to one 2 x 2 matrix per pixel and the strength across any direction can be read from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2lab

from engine.errors import ConfigurationError
from engine.superpixels.filters import add_doubled, add_gradients, add_relative_gradients, smooth

# Ranges of CIELAB that hold nearly all photographs' colours; the rest falls into the outermost bins.
_LIGHTNESS_RANGE, _LIGHTNESS_BINS = (0.0, 100.0), 10
_GREEN_RED_RANGE, _GREEN_RED_BINS = (-50.0, 60.0), 11
_BLUE_YELLOW_RANGE, _BLUE_YELLOW_BINS = (-50.0, 70.0), 12
# Texture: before half-resolution lightness is differentiated it is smoothed by this, a gradient of
# _HALF_GRADIENT per pixel counts as half edge, half plain, and edges have this many directions.
_TEXTURE_SMOOTHING_PX, _HALF_GRADIENT, _NUM_DIRECTIONS = 0.7, 3.0, 4


@dataclass(frozen=True, kw_only=True)
class BoundaryConfig:
    """Scales are standard deviations in pixels of the image; weights multiply squared strengths.

    The weights were chosen on the training images of BSDS500.
    """

    colour_scales_px: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Scales of the colour gradient, in CIELAB / 100."""
    colour_weights: tuple[float, ...] = (1.0, 1.2, 0.05)
    histogram_scales_px: tuple[float, ...] = (4.0, 8.0)
    """Scales of the windows whose colour histograms are compared."""
    lightness_weights: tuple[float, ...] = (0.006, 0.015)
    chroma_weights: tuple[float, ...] = (0.0075, 0.012)
    texture_scales_px: tuple[float, ...] = (4.0, 8.0, 12.0)
    """Scales of the windows whose histograms of edge directions are compared."""
    texture_weights: tuple[float, ...] = (0.01, 0.05, 0.01)
    placing_weight: float = 6.0
    """Weight that the first colour scale gets on top where borders are placed, not where they are weighed."""

    def __post_init__(self) -> None:
        self._check("colour_scales_px", "colour_weights", minimum_px=0.5)
        self._check("histogram_scales_px", "lightness_weights", minimum_px=1.0)
        self._check("histogram_scales_px", "chroma_weights", minimum_px=1.0)
        self._check("texture_scales_px", "texture_weights", minimum_px=1.0)
        if self.placing_weight < 0:
            raise ConfigurationError(
                f"boundary.placing_weight must not be negative, got {self.placing_weight}"
            )

    def _check(self, scales_name: str, weights_name: str, minimum_px: float) -> None:
        scales, weights = getattr(self, scales_name), getattr(self, weights_name)
        if len(scales) != len(weights):
            raise ConfigurationError(
                f"boundary.{scales_name} has {len(scales)} values and boundary.{weights_name} has "
                f"{len(weights)}: give one weight per scale"
            )
        if any(scale < minimum_px for scale in scales) or any(weight < 0 for weight in weights):
            raise ConfigurationError(
                f"boundary.{scales_name} are at least {minimum_px} pixels and boundary.{weights_name} not "
                f"negative, got {scales} and {weights}"
            )


def to_lab(image_hwc: NDArray[np.float32]) -> NDArray[np.float32]:
    """CIELAB, float32 (3, H, W), of sRGB in [0, 1], float32 (H, W, 3); lightness runs from 0 to 100."""
    return np.ascontiguousarray(rgb2lab(image_hwc).transpose(2, 0, 1), dtype=np.float32)


def boundary_tensor(lab_chw: NDArray[np.float32], config: BoundaryConfig) -> NDArray[np.float32]:
    """Boundary tensor, float32 (H, W, 3), of an image in CIELAB, float32 (3, H, W).

    Its entries are (xx, xy, yy); a border with normal n has the strength sqrt(n'Tn), where 0.01 is about one
    unit of CIELAB per pixel. A constant image gives zeros.

    Source: gradients of colour after Di Zenzo, CVGIP 1986; histograms of brightness, colour and texture
    on the two sides of a border after Martin, Fowlkes, Malik, PAMI 2004, with soft Gaussian windows for
    half-discs and bins of edge direction for textons; several scales after Arbeláez, Maire, Fowlkes, Malik,
    PAMI 2011, eq. 6.
    """
    tensor = np.zeros((*lab_chw.shape[1:], 3), np.float32)
    for scale_px, weight in zip(config.colour_scales_px, config.colour_weights, strict=True):
        _add_colour(lab_chw, scale_px, weight, tensor)
    add_doubled(_histogram_tensor(_halve(lab_chw), config), tensor)
    return tensor


def placing_tensor(
    tensor: NDArray[np.float32], lab_chw: NDArray[np.float32], config: BoundaryConfig
) -> NDArray[np.float32]:
    """The boundary tensor with more of the finest colour gradient, float32 (H, W, 3).

    Wide windows say best whether there is a border, narrow ones where it runs.
    """
    sharpened = tensor.copy()
    if config.colour_scales_px:
        _add_colour(lab_chw, config.colour_scales_px[0], config.placing_weight, sharpened)
    return sharpened


def _add_colour(
    lab_chw: NDArray[np.float32], scale_px: float, weight: float, tensor: NDArray[np.float32]
) -> None:
    """Add the colour gradient of one scale in place; times the scale squared, a step counts alike at all."""
    for plane in lab_chw:
        add_gradients(smooth(plane, scale_px), weight * scale_px**2 / 1e4, tensor)


def _histogram_tensor(lab_chw: NDArray[np.float32], config: BoundaryConfig) -> NDArray[np.float32]:
    """What differences of histograms add to the tensor, at half resolution, where they cost a quarter."""
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
    """Membership of each pixel in bins over `value_range`: split between the two nearest, in all 1.

    Bins that no pixel falls into are left out.
    """
    low, high = value_range
    position = np.clip((plane - low) * ((num_bins - 1) / (high - low)), 0, num_bins - 1)
    bins = [np.maximum(0, 1 - np.abs(position - index)).astype(np.float32) for index in range(num_bins)]
    return [membership for membership in bins if membership.any()]


def _direction_bins(lightness: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Membership of each pixel in "plain" and in directions of edges, in all 1: our textons."""
    padded = np.pad(smooth(lightness, _TEXTURE_SMOOTHING_PX), 1, mode="edge")
    along_y = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2
    along_x = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2
    gradient = np.hypot(along_x, along_y)
    edge = gradient / (gradient + _HALF_GRADIENT)
    direction = np.mod(np.arctan2(along_y, along_x), np.pi) * (_NUM_DIRECTIONS / np.pi)
    bins = [(1 - edge).astype(np.float32)]
    for index in range(_NUM_DIRECTIONS):
        apart = np.abs(direction - index)
        apart = np.minimum(apart, _NUM_DIRECTIONS - apart)
        bins.append((edge * np.maximum(0, 1 - apart)).astype(np.float32))
    return bins
