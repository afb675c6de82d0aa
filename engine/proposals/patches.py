"""Features and masks over an image's patches, for all proposal methods."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

# dtypes that torch shares with numpy.
_SHARED_DTYPES = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


def features_tensor(features_hwc: NDArray[np.floating] | torch.Tensor) -> torch.Tensor:
    """Features (h, w, C) as a tensor without gradients, on their device; it may share their memory.

    Raises ValueError for another shape or an empty one.

    >>> features_tensor(np.array([[[1.0], [2.0]]])[:, ::-1]).tolist()
    [[[2.0], [1.0]]]
    """
    if features_hwc.ndim != 3 or 0 in features_hwc.shape:
        raise ValueError(
            "features must have the shape (height, width, channels), at least 1 each, "
            f"got {tuple(features_hwc.shape)}"
        )
    if isinstance(features_hwc, torch.Tensor):
        return features_hwc.detach()
    if features_hwc.dtype not in _SHARED_DTYPES:
        return torch.from_numpy(features_hwc.astype(np.float32))
    is_shared = features_hwc.flags.writeable and min(features_hwc.strides) >= 0
    return torch.from_numpy(features_hwc if is_shared else features_hwc.copy())


def normalised_features(features_hwc: NDArray[np.floating] | torch.Tensor) -> torch.Tensor:
    """Features (h, w, C) as float32 (h * w, C) of unit length, on their device; zero vectors stay zero."""
    features = features_tensor(features_hwc)
    flat = features.reshape(-1, features.shape[2]).to(torch.float32, copy=True)
    lengths = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    if not bool(torch.isfinite(lengths).all()):  # a finite length implies a finite feature
        raise ValueError("features must be finite")
    return flat.div_(lengths.clamp_min(torch.finfo(torch.float32).tiny))


def touched_sides(masks: NDArray[np.bool_], coverage: float) -> NDArray[np.int64]:
    """Number of image sides that each mask (N, h, w) covers by more than the share `coverage`, int64 (N,).

    >>> touched_sides(np.array([[[1, 1, 0], [1, 0, 0], [1, 0, 0]]], dtype=bool), 0.5).tolist()
    [2]
    """
    sides = (masks[:, 0, :], masks[:, -1, :], masks[:, :, 0], masks[:, :, -1])
    covered: NDArray[np.int64] = np.sum([side.mean(axis=1) > coverage for side in sides], axis=0)
    return covered


def cover_background(
    masks: NDArray[np.bool_], background: NDArray[np.bool_], coverage: float
) -> NDArray[np.bool_]:
    """Whether each mask (N, h, w) covers more than the share `coverage` of `background` (h, w), bool (N,).

    All false if the background is empty.

    >>> masks = np.array([[[1, 1, 0]], [[0, 1, 1]]], dtype=bool)
    >>> cover_background(masks, np.array([[1, 1, 0]], dtype=bool), 0.5)
    array([ True, False])
    """
    covered = np.count_nonzero(masks & background, axis=(1, 2))
    covering: NDArray[np.bool_] = covered > coverage * np.count_nonzero(background)
    return covering
