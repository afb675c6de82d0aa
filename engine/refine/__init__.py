"""Mask refinement: coarse masks are fitted to image edges by a fully connected CRF (docs/methods.md, 5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.refine.config import CrfConfig

__all__ = ["CrfConfig", "refine_images", "refine_masks"]

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
    another; ties are background. Only the backend "numba" uses `num_threads`, whose number does not change
    the result; only "torch" uses `device`.

    Raises ValueError for wrong shapes or dtypes, and ConfigurationError in the backends numba and torch if
    the standard deviations are thousands of times smaller than the image.
    Source: ProMerge (arXiv 2409.18961), section 2.7: two labels, unary energy -log softmax(1 - m, m), Potts
    pairwise terms with symmetric normalisation, argmax after `config.steps` mean-field updates.

    >>> grey = np.full((2, 3, 3), 128, np.uint8)
    >>> refine_masks(grey, np.array([[[0, 0, 0], [0, 1, 0]], [[1, 1, 1], [1, 1, 1]]], bool)).any(axis=(1, 2))
    array([False,  True])
    """
    return refine_images([image_hwc], [masks], config, num_threads=num_threads, device=device)[0]


def refine_images(
    images: Sequence[NDArray[np.uint8]],
    masks: Sequence[NDArray[np.bool_]],
    config: CrfConfig = _DEFAULT_CONFIG,
    *,
    num_threads: int = 1,
    device: str = "cpu",
) -> list[NDArray[np.bool_]]:
    """`refine_masks` for each of B images of one size (H, W, 3) and its masks (N, H, W).

    The backend "torch" refines all images at once, in the memory that `refine_batch` states; masks travel to
    the device and back packed, eight pixels per byte. The other backends refine one image after the other.
    """
    for image_hwc, image_masks in zip(images, masks, strict=True):
        _check_arguments(image_hwc, image_masks, num_threads)
    if len({image_hwc.shape for image_hwc in images}) > 1:
        raise ValueError("images that are refined together must have the same size")
    refined = [image_masks.copy() for image_masks in masks]
    with_masks = [i for i, image_masks in enumerate(masks) if image_masks.size > 0]
    backend = config.backend
    if backend == "auto":
        backend = "numba" if device == "cpu" else "torch"
    # Backends are imported on first use: each needs a heavy library of its own.
    if backend == "torch" and with_masks:
        from engine.refine.tensor_mean_field import refine_on_device

        results = refine_on_device(
            [images[i] for i in with_masks], [masks[i] for i in with_masks], config, device
        )
        for i, result in zip(with_masks, results, strict=True):
            refined[i] = result
    elif backend == "numba":
        from engine.refine import mean_field

        for i in with_masks:
            refined[i] = mean_field.refine_masks(images[i], masks[i], config, num_threads)
    elif backend == "pydensecrf":
        from engine.refine import reference

        for i in with_masks:
            refined[i] = reference.refine_masks(images[i], masks[i], config)
    return refined


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
