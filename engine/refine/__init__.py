"""Refinement: coarse masks fitted to the edges of their image by a fully connected CRF."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.refine.config import CrfConfig

__all__ = ["CrfConfig", "refine_masks"]

_DEFAULT_CONFIG = CrfConfig()


def refine_masks(
    image_hwc: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    config: CrfConfig = _DEFAULT_CONFIG,
    *,
    num_threads: int = 1,
    device: str = "cpu",
) -> NDArray[np.bool_]:
    """The most probable labelling of every mask under the dense CRF of `config`.

    `image_hwc` is uint8 (H, W, 3), `masks` bool (N, H, W); returns bool (N, H, W). Masks do not influence one
    other; a tie is background. Only the backend "numba" uses more than one of `num_threads`, and its result
    does not depend on their number; only "torch" computes on another `device` than the CPU.

    Raises ValueError where shapes or dtypes are wrong, ConfigurationError where numba or torch finds the
    standard deviations too small for the image (thousands of them across it).
    Source: ProMerge (arXiv 2409.18961), section 2.7: two labels, unary energy -log softmax(1 - m, m), Potts
    pairwise terms with symmetric normalisation, argmax after `config.steps` mean-field updates.

    >>> grey = np.full((2, 3, 3), 128, np.uint8)
    >>> refine_masks(grey, np.array([[[0, 0, 0], [0, 1, 0]], [[1, 1, 1], [1, 1, 1]]], bool)).any(axis=(1, 2))
    array([False,  True])
    """
    _check_arguments(image_hwc, masks, num_threads)
    if masks.size == 0:
        return masks.copy()
    backend = config.backend
    if backend == "auto":
        backend = "numba" if device == "cpu" else "torch"
    # Backends are imported when first used: each needs a heavy library that the others do without.
    if backend == "numba":
        from engine.refine import mean_field

        return mean_field.refine_masks(image_hwc, masks, config, num_threads)
    if backend == "torch":
        import torch

        from engine.refine.tensor_mean_field import refine_batch

        # Copies: torch warns of arrays that may not be written.
        image, flags = (torch.tensor(array.copy(), device=device) for array in (image_hwc, masks))
        refined: NDArray[np.bool_] = refine_batch(image[None], flags, (len(masks),), config).cpu().numpy()
        return refined
    from engine.refine import reference

    return reference.refine_masks(image_hwc, masks, config)


def _check_arguments(image_hwc: NDArray[np.uint8], masks: NDArray[np.bool_], num_threads: int) -> None:
    if image_hwc.dtype != np.uint8 or image_hwc.ndim != 3 or image_hwc.shape[2] != 3:
        raise ValueError(f"image must be uint8 (H, W, 3), got {image_hwc.dtype} {image_hwc.shape}")
    if masks.dtype != np.bool_ or masks.ndim != 3 or masks.shape[1:] != image_hwc.shape[:2]:
        raise ValueError(
            f"masks must be bool (N, {image_hwc.shape[0]}, {image_hwc.shape[1]}) like the image, "
            f"got {masks.dtype} {masks.shape}"
        )
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}")
