"""A linear probe: how well patch features separate foreground from background.

A logistic regression on L2-normalised patch features, fitted on some of the images; its quality is the area
under the ROC curve over the patches of the other images. A patch is foreground if instances cover more than
half of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata

from engine.bounds import Bounded, Bounds, Count, CountOrZero, Positive
from engine.errors import ConfigurationError
from engine.evaluation.ground_truth import AnnotatedImage
from engine.masks.rle import decode_rles

# After this many the area under the curve no longer changes in its fourth digit.
_MAX_ITERATIONS = 300


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(Bounded):
    """How the probe is fitted."""

    train_share: Annotated[float, Bounds(0, 1, "a share", above=True, below=True)] = 0.5
    """Share of the images to fit on, drawn at random; the others are held out."""
    patches_per_image: Count = 1000
    """Patches drawn from each image at most, which bounds memory."""
    penalty: Positive = 1.0
    """L2 penalty: the weight of half the squared norm of the weights, against the summed patch losses."""
    seed: CountOrZero = 0
    """Seed of the draws of images and of patches."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledPatches:
    """N patches: unit features, float32 (N, C), and their labels, bool (N,)."""

    features: NDArray[np.float32]
    is_foreground: NDArray[np.bool_]


def foreground_patches(truth: AnnotatedImage, grid: tuple[int, int]) -> NDArray[np.bool_]:
    """Patches that instances or crowds cover by more than half, bool (h, w), for a grid (h, w)."""
    covered = decode_rles(truth.rles, truth.size).any(axis=0)
    # A box filter averages over each patch's exact area for any image size.
    shares = Image.fromarray(covered.astype(np.float32)).resize(grid[::-1], Image.Resampling.BOX)
    is_foreground: NDArray[np.bool_] = np.asarray(shares) > 0.5
    return is_foreground


def pixel_features(image_hwc: NDArray[np.uint8], grid: tuple[int, int]) -> NDArray[np.float32]:
    """RGB values of each patch, 0 to 1, float32 (h, w, C), for a grid (h, w): a baseline for any encoder.

    The image's size is a multiple of the grid's.
    """
    height, width = image_hwc.shape[0] // grid[0], image_hwc.shape[1] // grid[1]
    patches = image_hwc.reshape(grid[0], height, grid[1], width, 3).swapaxes(1, 2)
    return patches.reshape(*grid, height * width * 3).astype(np.float32) / np.float32(255)


def draw_patches(
    features_hwc: NDArray[np.floating], is_foreground: NDArray[np.bool_], config: ProbeConfig, number: int
) -> LabelledPatches:
    """Draw patches of one image; the draw depends on the seed and the image's `number` alone."""
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
    """Fit a probe on some images; its area under the ROC curve, 0 to 1, over the patches of the others.

    0.5 is chance. Raises ConfigurationError if either part lacks foreground or background.
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
    """Probability that a positive scores higher than a negative, ties counting half (Mann-Whitney U).

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
            f"{len(images)} images for one part of the probe lack foreground or background patches: "
            "use more images"
        )
    return LabelledPatches(
        features=np.concatenate([image.features for image in images]), is_foreground=labels
    )


def _fit(patches: LabelledPatches, penalty: float) -> tuple[NDArray[np.float32], float]:
    """Weights (C,) and bias of the logistic regression, fitted by L-BFGS from zero."""
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
