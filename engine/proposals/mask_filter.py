"""The mask score R(M), which measures how much a mask stands out from its surroundings.

Source: Hoang, "Unsupervised Instance Segmentation with Superpixels", arXiv 2509.05352, the mask filter. The
paper defines neither the affinity nor the edge; ours are in `score_masks`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from engine.proposals.config import MaskFilterConfig
from engine.proposals.patches import normalised_features

_PLUS = ndimage.generate_binary_structure(2, 1)[None]


def score_masks(
    features_hwc: NDArray[np.floating] | torch.Tensor, masks: NDArray[np.bool_], config: MaskFilterConfig
) -> NDArray[np.float32]:
    """R(M) of masks (N, h, w) over features (h, w, C): float32 (N,) in [-2, 2], higher stands out more.

    R(M) = mean of A over inner patches - mean of A over edge patches, A = cosine of a patch with the mask's
    mean feature. Inner patches are the mask without its rim, or all of a mask that is only rim; the mean over
    no edge patches is 0. Empty masks score 0. The image side is no rim: neighbours outside the image are
    ignored. Source: docs/methods.md, 3.3.
    """
    features = normalised_features(features_hwc)
    if len(masks) == 0:
        return np.zeros(0, np.float32)
    # Patches outside the image count as mask, so that a mask has no rim at the image side.
    eroded = ndimage.binary_erosion(masks, _PLUS, border_value=1)
    inner = np.where(eroded.any(axis=(1, 2), keepdims=True), eroded, masks)
    outer_ring = ndimage.binary_dilation(masks, _PLUS) & ~masks
    edge = outer_ring if config.edge == "outside" else masks & ~eroded
    affinity = _affinity(features, masks)
    scores: NDArray[np.float32] = (_means(affinity, inner) - _means(affinity, edge)).astype(np.float32)
    return scores


def _affinity(features: torch.Tensor, masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Cosine of every patch with each mask's mean feature, (N, h, w)."""
    flat = torch.as_tensor(masks.reshape(len(masks), -1), device=features.device).float()
    # The cosine with the sum equals the cosine with the mean.
    directions = torch.nn.functional.normalize(flat @ features, dim=1)
    affinity: NDArray[np.float32] = (directions @ features.T).cpu().numpy().reshape(masks.shape)
    return affinity


def _means(values: NDArray[np.float32], masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean of `values` over each mask, (N,); 0 for an empty mask."""
    sums = np.where(masks, values, 0).sum(axis=(1, 2), dtype=np.float64)
    counts = np.count_nonzero(masks, axis=(1, 2))
    means: NDArray[np.float64] = sums / np.maximum(counts, 1)
    return means
