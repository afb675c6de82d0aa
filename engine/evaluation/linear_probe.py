"""What features know of objects, without training anything on them but one line: a linear probe.

A logistic regression on L2-normalised patch features tells foreground from background; its quality is the
area under the ROC curve over the patches of images that it was not fitted on. Foreground is a patch of which
instances cover more than half.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata

from engine.encoders import Encoder
from engine.errors import ConfigurationError
from engine.evaluation.ground_truth import AnnotatedImage
from engine.images.resizing import resize_image
from engine.masks.rle import decode_rles

# Enough for the area under the curve to stand still in its fourth digit.
_MAX_ITERATIONS = 300


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How the probe is fitted."""

    train_share: float = 0.5
    """Share of the images that it is fitted on; the others measure it. Which ones is drawn from the seed."""
    patches_per_image: int = 1000
    """Patches drawn from an image, which bounds memory; all where it has fewer."""
    penalty: float = 1.0
    """Weight of half the squared length of the probe's weights beside the summed loss of all patches."""
    seed: int = 0
    """Of both draws."""

    def __post_init__(self) -> None:
        if not 0 < self.train_share < 1:
            raise ConfigurationError(f"probe.train_share is between 0 and 1, got {self.train_share}")
        if self.patches_per_image < 1:
            raise ConfigurationError(f"probe.patches_per_image is at least 1, got {self.patches_per_image}")
        if not self.penalty > 0:
            raise ConfigurationError(f"probe.penalty is above 0, got {self.penalty}")


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledPatches:
    """Patches of one image: features float32 (N, C) of length 1, and which are foreground, bool (N,)."""

    features: NDArray[np.float32]
    is_foreground: NDArray[np.bool_]


def probe_encoder(
    encoder: Encoder, images: Iterable[tuple[NDArray[np.uint8], AnnotatedImage]], config: ProbeConfig
) -> float:
    """`foreground_auc` of an encoder on photographs, uint8 RGB (H, W, 3), one at a time, and their truth."""
    patches = []
    for number, (image_hwc, truth) in enumerate(images):
        features = encoder.encode([resize_image(image_hwc, encoder.image_size)])[0].cpu().numpy()
        patches.append(draw_patches(features, foreground_patches(truth, encoder.grid), config, number))
    return foreground_auc(patches, config)


def foreground_patches(truth: AnnotatedImage, grid: tuple[int, int]) -> NDArray[np.bool_]:
    """Which patches of a grid (h, w) over the image are covered by more than half, by instances or crowds."""
    covered = decode_rles(truth.rles, truth.size).any(axis=0)
    # A box filter averages over each patch's exact area, whatever the image's size is.
    shares = Image.fromarray(covered.astype(np.float32)).resize(grid[::-1], Image.Resampling.BOX)
    is_foreground: NDArray[np.bool_] = np.asarray(shares) > 0.5
    return is_foreground


def pixel_features(image_hwc: NDArray[np.uint8], grid: tuple[int, int]) -> NDArray[np.float32]:
    """The RGB values of each patch of a grid (h, w) side by side, 0 to 1, float32 (h, w, C): what any encoder
    should beat. The image's size is a multiple of the grid's."""
    height, width = image_hwc.shape[0] // grid[0], image_hwc.shape[1] // grid[1]
    patches = image_hwc.reshape(grid[0], height, grid[1], width, 3).swapaxes(1, 2)
    return patches.reshape(*grid, height * width * 3).astype(np.float32) / np.float32(255)


def draw_patches(
    features_hwc: NDArray[np.floating], is_foreground: NDArray[np.bool_], config: ProbeConfig, number: int
) -> LabelledPatches:
    """Some of an image's patches; which ones depends on the seed and the image's `number` alone."""
    flat = features_hwc.reshape(-1, features_hwc.shape[-1])
    drawn: NDArray[np.intp] = np.arange(len(flat))
    if config.patches_per_image < len(flat):
        rng = np.random.default_rng((config.seed, number))
        drawn = np.sort(rng.choice(len(flat), config.patches_per_image, replace=False))
    features = flat[drawn].astype(np.float32)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = np.divide(features, lengths, out=np.zeros_like(features), where=lengths > 0)
    return LabelledPatches(features=unit, is_foreground=is_foreground.ravel()[drawn])


def foreground_auc(images: Sequence[LabelledPatches], config: ProbeConfig) -> float:
    """Area under the ROC curve, 0 to 1, of a probe fitted on some images, over the patches of the others.

    0.5 is chance. Raises ConfigurationError where either part has no foreground or no background.
    """
    order = np.random.default_rng(config.seed).permutation(len(images))
    num_fitted = math.floor(config.train_share * len(images))
    fitted, held_out = (
        _stack([images[i] for i in order[:num_fitted]]),
        _stack([images[i] for i in order[num_fitted:]]),
    )
    weights, offset = _fit(fitted, config.penalty)
    return area_under_curve(held_out.features @ weights + offset, held_out.is_foreground)


def area_under_curve(scores: NDArray[np.floating], is_positive: NDArray[np.bool_]) -> float:
    """The chance that a positive has a higher score than a negative, ties counting half (Mann and Whitney).

    >>> area_under_curve(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True]))
    0.875
    """
    num_positive = int(np.count_nonzero(is_positive))
    num_negative = len(is_positive) - num_positive
    ranks = rankdata(scores)[is_positive].sum() - num_positive * (num_positive + 1) / 2
    return float(ranks / (num_positive * num_negative))


def _stack(images: Sequence[LabelledPatches]) -> LabelledPatches:
    labels = np.concatenate([np.zeros(0, bool), *(image.is_foreground for image in images)])
    if labels.all() or not labels.any():
        raise ConfigurationError(
            f"{len(images)} images for one part of the probe hold not both foreground and background: "
            "take more images"
        )
    return LabelledPatches(
        features=np.concatenate([image.features for image in images]), is_foreground=labels
    )


def _fit(patches: LabelledPatches, penalty: float) -> tuple[NDArray[np.float32], float]:
    """Weights (C,) and offset of the logistic regression, by L-BFGS from zero."""
    features, signs = patches.features, np.where(patches.is_foreground, 1.0, -1.0)
    count, size = features.shape

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = parameters[:-1]
        margins = signs * (features @ weights.astype(np.float32) + parameters[-1])
        slopes = -signs * expit(-margins) / count
        gradient = np.append(slopes.astype(np.float32) @ features + penalty / count * weights, slopes.sum())
        value = np.logaddexp(0, -margins).mean() + penalty / count * (weights @ weights) / 2
        return float(value), gradient

    found = minimize(
        loss, np.zeros(size + 1), jac=True, method="L-BFGS-B", options={"maxiter": _MAX_ITERATIONS}
    ).x
    return found[:-1].astype(np.float32), float(found[-1])
