"""Refinement: coarse masks fitted to the edges of their image by a fully connected CRF."""

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
    return refine_images([image_hwc], [masks], config, num_threads=num_threads, device=device)[0]


def refine_images(
    images: Sequence[NDArray[np.uint8]],
    masks: Sequence[NDArray[np.bool_]],
    config: CrfConfig = _DEFAULT_CONFIG,
    *,
    num_threads: int = 1,
    device: str = "cpu",
) -> list[NDArray[np.bool_]]:
    """What `refine_masks` makes of each of B images of one size (H, W, 3) and its masks (N, H, W).

    "torch" computes them all at once, in the memory that `refine_batch` states; masks go to the device and
    come back packed, eight pixels in a byte. The other backends take one image after the other.
    """
    for image_hwc, some in zip(images, masks, strict=True):
        _check_arguments(image_hwc, some, num_threads)
    if len({image_hwc.shape for image_hwc in images}) > 1:
        raise ValueError("images must be of one size to be refined together")
    refined = [some.copy() for some in masks]
    with_masks = [i for i, some in enumerate(masks) if some.size > 0]
    backend = config.backend
    if backend == "auto":
        backend = "numba" if device == "cpu" else "torch"
    # Backends are imported when first used: each needs a heavy library that the others do without.
    if backend == "torch" and with_masks:
        from engine.refine.tensor_mean_field import refine_on_device

        chosen = refine_on_device(
            [images[i] for i in with_masks], [masks[i] for i in with_masks], config, device
        )
        for i, some in zip(with_masks, chosen, strict=True):
            refined[i] = some
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
