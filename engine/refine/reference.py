"""The reference backend: pydensecrf, the original authors' C++ implementation, one mask at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.errors import ConfigurationError
from engine.refine.config import CrfConfig


def refine_masks(
    image_hwc: NDArray[np.uint8], masks: NDArray[np.bool_], config: CrfConfig
) -> NDArray[np.bool_]:
    """Masks bool (N, H, W) of an image uint8 (H, W, 3) after the CRF, by pydensecrf; ties are background.

    Raises ConfigurationError if pydensecrf is not installed.
    """
    image = np.array(image_hwc, order="C")  # a copy: pydensecrf needs a writable buffer
    refined = [_foreground_margin(image, mask, config) > 0 for mask in masks]
    return np.array(refined, bool).reshape(masks.shape)


def _foreground_margin(
    image_hwc: NDArray[np.uint8], mask: NDArray[np.bool_], config: CrfConfig
) -> NDArray[np.float32]:
    """Foreground minus background probability (H, W) after the last mean-field step."""
    # The only library of the project that has to be compiled, and no other backend needs it.
    try:
        import pydensecrf.densecrf as pydensecrf
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "backend pydensecrf is not installed: leave crf.backend out, or compile it with "
            "pip install 'maskmill[reference]'"
        ) from error
    height, width = mask.shape
    crf = pydensecrf.DenseCRF2D(width, height, 2)
    crf.setUnaryEnergy(unary_energy(mask))
    crf.addPairwiseGaussian(
        sxy=config.gaussian_sigma_xy,
        compat=config.gaussian_weight,
        kernel=pydensecrf.DIAG_KERNEL,
        normalization=pydensecrf.NORMALIZE_SYMMETRIC,
    )
    crf.addPairwiseBilateral(
        sxy=config.bilateral_sigma_xy,
        srgb=config.bilateral_sigma_rgb,
        rgbim=image_hwc,
        compat=config.bilateral_weight,
        kernel=pydensecrf.DIAG_KERNEL,
        normalization=pydensecrf.NORMALIZE_SYMMETRIC,
    )
    background, foreground = np.array(crf.inference(config.steps), np.float32).reshape(2, height, width)
    return foreground - background


def unary_energy(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """-log softmax(1 - m, m) of a mask (H, W): float32 (2, H * W), background first.

    >>> unary_energy(np.array([[False, True]])).round(2)
    array([[0.31, 1.31], [1.31, 0.31]], dtype=float32)
    """
    foreground = mask.ravel().astype(np.float32)
    logits = np.stack([1 - foreground, foreground])
    energy: NDArray[np.float32] = np.log(np.exp(logits).sum(axis=0)) - logits
    return np.ascontiguousarray(energy, np.float32)
