"""A low-level patch descriptor: colour and gradients on smoothed surfaces, without any learned weight.

It is no replacement for a self-supervised network: it tells surfaces apart that differ in colour or texture
and knows nothing about objects. It needs no download, runs on any machine and makes the whole pipeline usable
and testable offline.

1. Per patch of 8 x 8 pixels, in CIE L*a*b* (D65): mean and standard deviation of L, a and b, and the energy
   of the lightness gradient in 6 unsigned, soft-binned orientations, as in HOG (Dalal & Triggs, CVPR 2005),
   under a square root. Each of the 12 channels is brought to mean 0 and a fixed variance over the image.
2. Edge-preserving diffusion over the grid of patches (Perona & Malik, PAMI 1990): neighbours of one surface
   grow alike, different surfaces stay apart.
3. An explicit map of a Gaussian kernel on these, through 8 x 8 landmark patches (Nystrom: Williams & Seeger,
   NIPS 2000): the cosine of two patches falls from 1 to 0 as they differ, in whatever direction.
4. Half of the image's mean is taken off, so that different surfaces end below 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from engine.encoders.centring import FeatureStatistics, Normaliser
from engine.encoders.encoder import EncoderConfig, check_images, patch_grid

PATCH_SIZE = 8
NUM_ORIENTATIONS = 6
# Version 1, chosen on COCO photographs: weights of the standardised channels, then steps 2 to 4.
_WEIGHTS = np.repeat(np.array([1.0, 0.5, 0.3], np.float32), [3, 3, NUM_ORIENTATIONS])
_DIFFUSION_STEPS = 8
_DIFFUSION_SIGMA = 1.0
_LANDMARKS_PER_SIDE = 8
_KERNEL_SIGMA = 1.3
_MEAN_SHARE = 0.5
_VERSION = "maskmill patch descriptor 1"

FEATURE_SIZE = _LANDMARKS_PER_SIDE**2

Array = NDArray[np.float32]


class DescriptorEncoder:
    """The descriptor as an encoder; see `engine.encoders.Encoder`. Computed on the CPU, in float32."""

    def __init__(
        self, config: EncoderConfig, device: torch.device, statistics: FeatureStatistics | None = None
    ) -> None:
        self.name = config.name
        self.feature_size = FEATURE_SIZE
        self.grid = patch_grid(config.image_size, (PATCH_SIZE, PATCH_SIZE), config.name)
        self.image_size = (self.grid[0] * PATCH_SIZE, self.grid[1] * PATCH_SIZE)
        self.weights_digest = hashlib.sha256(_VERSION.encode()).hexdigest()
        self._normalise = Normaliser(config, statistics, FEATURE_SIZE, device)
        self.centring_digest = self._normalise.digest
        self._device = device
        self._libraries = ThreadpoolController()

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """B images uint8 (H, W, 3) -> float16 (B, h, w, C) on the encoder's device; see `Encoder.encode`."""
        features = self.encode_raw(images)  # of length 1
        return self._normalise(features) if self._normalise.centres else features.to(torch.float16)

    def encode_raw(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """B images uint8 (H, W, 3) -> float32 (B, h, w, C); see `Encoder.encode_raw`."""
        check_images(images, (PATCH_SIZE, PATCH_SIZE))
        grid = (images[0].shape[0] // PATCH_SIZE, images[0].shape[1] // PATCH_SIZE) if images else self.grid
        features = np.empty((len(images), *grid, FEATURE_SIZE), np.float32)
        # On matrices as small as these, further threads of BLAS cost twice the CPU time and gain none.
        with self._libraries.limit(limits=1, user_api="blas"):
            for index, image in enumerate(images):
                features[index] = describe_patches(image)
        return torch.from_numpy(features).to(self._device)


def describe_patches(image: NDArray[np.uint8]) -> Array:
    """Descriptors of the 8 x 8 patches of an RGB image uint8 (H, W, 3): float32 (H/8, W/8, 64), length 1.

    All patches of a single-coloured image have the same descriptor.

    >>> two_halves = np.zeros((32, 64, 3), np.uint8)
    >>> two_halves[:, 32:] = (200, 40, 40)
    >>> features = describe_patches(two_halves)
    >>> bool(features[0, 0] @ features[3, 1] > 0.9 > 0 > features[0, 0] @ features[0, 7])
    True
    """
    lab = srgb_to_lab(image)
    channels = np.concatenate([*_patch_moments(lab), _patch_orientations(lab[:, :, 0])], axis=2)
    surfaces = _diffuse(_weighted(channels))
    features = _unit(_kernel_features(surfaces))
    return _unit(features - np.float32(_MEAN_SHARE) * features.mean(axis=(0, 1)))


def srgb_to_lab(image: NDArray[np.uint8]) -> Array:
    """sRGB uint8 (H, W, 3) -> CIE L*a*b* / 100 float32 (H, W, 3), white D65.

    >>> srgb_to_lab(np.full((1, 1, 3), 255, np.uint8)).round(3).tolist()
    [[[1.0, 0.0, 0.0]]]
    """
    xyz = _LINEAR[image.reshape(-1, 3)] @ _XYZ_FROM_RGB.T
    xyz *= _CUBE_ROOT.size - 1
    xyz += 0.5  # white may come out a rounding above 1, which stays within the last step
    f = _CUBE_ROOT[xyz.astype(np.int32)]
    # L = 116 f(y) - 16, a = 500 (f(x) - f(y)), b = 200 (f(y) - f(z)).
    lab: Array = f @ _LAB_FROM_CUBE_ROOTS - _LAB_OFFSET
    return lab.reshape(image.shape)


def _linear_table() -> Array:
    """Linear light of the 256 sRGB values (IEC 61966-2-1)."""
    value = np.arange(256) / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return linear.astype(np.float32)


def _cube_root_table() -> Array:
    """CIE's f(t) on [0, 1] in 2^14 steps: a tenth of the time of a cube root per pixel."""
    t = np.linspace(0.0, 1.0, 2**14 + 1)
    return np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29).astype(np.float32)


# Rows divided by the white point, so that white becomes (1, 1, 1).
_XYZ_FROM_RGB = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_XYZ_FROM_RGB = (_XYZ_FROM_RGB / _XYZ_FROM_RGB.sum(axis=1, keepdims=True)).astype(np.float32)
_LAB_FROM_CUBE_ROOTS = np.array([[0.0, 5.0, 0.0], [1.16, -5.0, 2.0], [0.0, 0.0, -2.0]], np.float32)
_LAB_OFFSET = np.array([0.16, 0.0, 0.0], np.float32)
_LINEAR = _linear_table()
_CUBE_ROOT = _cube_root_table()


def _patch_means(plane: Array) -> Array:
    """Means over patches: (H, W, n) -> (h, w, n)."""
    height, width, size = plane.shape
    rows = plane.reshape(height // PATCH_SIZE, PATCH_SIZE, width * size).sum(axis=1)
    sums = rows.reshape(height // PATCH_SIZE, width // PATCH_SIZE, PATCH_SIZE, size).sum(axis=2)
    means: Array = sums / np.float32(PATCH_SIZE**2)
    return means


def _patch_moments(lab: Array) -> tuple[Array, Array]:
    """Mean and standard deviation per patch and channel, each (h, w, 3)."""
    mean = _patch_means(lab)
    variance = _patch_means(lab * lab) - mean * mean
    return mean, np.sqrt(np.maximum(variance, 0.0))


def _patch_orientations(lightness: Array) -> Array:
    """Square root of the mean gradient magnitude per patch in each orientation, (h, w, 6)."""
    dy, dx = np.zeros_like(lightness), np.zeros_like(lightness)
    dy[1:-1] = lightness[2:] - lightness[:-2]
    dx[:, 1:-1] = lightness[:, 2:] - lightness[:, :-2]
    magnitude = np.sqrt(dy * dy + dx * dx)
    # In units of bins. Opposite directions are one orientation, so the bins close to a ring.
    position = np.arctan2(dy, dx) * np.float32(NUM_ORIENTATIONS / np.pi) + np.float32(NUM_ORIENTATIONS)
    lower = position.astype(np.int32)
    upper_share = (position - lower) * magnitude
    height, width = lightness.shape[0] // PATCH_SIZE, lightness.shape[1] // PATCH_SIZE
    patches = np.arange(height * width, dtype=np.int32).reshape(height, width) * NUM_ORIENTATIONS
    first_bins = patches.repeat(PATCH_SIZE, axis=0).repeat(PATCH_SIZE, axis=1)
    sums = np.zeros(height * width * NUM_ORIENTATIONS)
    for bins, share in ((lower, magnitude - upper_share), (lower + 1, upper_share)):
        index = first_bins + bins % NUM_ORIENTATIONS
        sums += np.bincount(index.ravel(), weights=share.ravel(), minlength=sums.size)
    return np.sqrt(sums.reshape(height, width, NUM_ORIENTATIONS) / PATCH_SIZE**2).astype(np.float32)


def _weighted(channels: Array) -> Array:
    """Channels of mean 0 over the image, their variances in the ratio of the squared weights, (h, w, 12).

    A channel without variation becomes 0; the others then share its part, so that grey images are told apart
    as finely as coloured ones. The bound is relative to the channel's size: rounding alone must not be blown
    up into features.
    """
    values = channels.astype(np.float64)
    mean, deviation = values.mean(axis=(0, 1)), values.std(axis=(0, 1))
    varies = deviation > np.maximum(1e-3 * np.abs(values).max(axis=(0, 1)), 1e-4)
    power = _WEIGHTS.astype(np.float64) ** 2
    share = np.sqrt(power.sum() / max(power[varies].sum(), power.min()))
    scale = np.divide(_WEIGHTS * share, deviation, out=np.zeros_like(deviation), where=varies)
    weighted: Array = ((values - mean) * scale).astype(np.float32)
    return weighted


def _diffuse(channels: Array) -> Array:
    """Each patch becomes the mean of itself and its 4 neighbours, weighted by likeness, step after step."""
    for _ in range(_DIFFUSION_STEPS):
        total, weights = channels.copy(), np.ones((*channels.shape[:2], 1), np.float32)
        for near, far in (
            (np.s_[:-1, :], np.s_[1:, :]),
            (np.s_[:, :-1], np.s_[:, 1:]),
        ):
            difference = channels[far] - channels[near]
            squared = np.einsum("hwc,hwc->hw", difference, difference)[:, :, None]
            conductance = np.exp(squared * np.float32(-0.5 / _DIFFUSION_SIGMA**2))
            total[near] += conductance * channels[far]
            total[far] += conductance * channels[near]
            weights[near] += conductance
            weights[far] += conductance
        channels = np.divide(total, weights, dtype=np.float32)
    return channels


def _kernel_features(channels: Array) -> Array:
    """(h, w, n) -> (h, w, 64) whose dot products are a Gaussian kernel's values, as far as landmarks reach.

    With landmarks L and their kernel matrix K = C C^T, the feature of x is C^-1 k(x, L). The ridge keeps C
    regular where landmarks are alike.
    """
    height, width, size = channels.shape
    landmarks = channels[_spread(height)][:, _spread(width)].reshape(-1, size)
    among = _gaussian_kernel(landmarks, landmarks).astype(np.float64) + 1e-3 * np.eye(len(landmarks))
    inverse = np.linalg.inv(np.linalg.cholesky(among)).astype(np.float32)
    kernel = _gaussian_kernel(channels.reshape(-1, size), landmarks)
    return (kernel @ inverse.T).reshape(height, width, FEATURE_SIZE)


def _spread(length: int) -> NDArray[np.intp]:
    """Indices of landmarks along an axis: the middles of 8 equal parts."""
    return ((np.arange(_LANDMARKS_PER_SIDE) + 0.5) * length / _LANDMARKS_PER_SIDE).astype(np.intp)


def _gaussian_kernel(left: Array, right: Array) -> Array:
    """exp(-|x - y|^2 / (2 sigma^2)) of n and m vectors, (n, m)."""
    squared = np.square(left).sum(axis=1)[:, None] + np.square(right).sum(axis=1) - 2.0 * (left @ right.T)
    kernel: Array = np.exp(np.maximum(squared, 0.0) * np.float32(-0.5 / _KERNEL_SIGMA**2))
    return kernel


def _unit(features: Array) -> Array:
    """Vectors (h, w, C) of length 1; 0 stays 0."""
    length = np.sqrt(np.einsum("hwc,hwc->hw", features, features))[:, :, None]
    unit: Array = np.divide(features, length, out=np.zeros_like(features), where=length > 0)
    return unit
