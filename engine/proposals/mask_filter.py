"""How well a mask stands out: R(M), the score of both labelling methods.

Hoang, "Unsupervised Instance Segmentation with Superpixels", arXiv 2509.05352, the mask filter; what the
paper leaves open (the affinity, the edge) is stated where it is computed.
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
    """R(M) of masks (N, h, w) over features (h, w, C): float32 (N,), in [-2, 2], higher stands out more.

    R(M) = mean of A over inner patches - mean of A over edge patches, A = cosine of a patch with the mask's
    mean feature. Inner patches are those off the rim (all, where a mask is nothing but rim); a mask without
    edge patches has 0 in their place. Empty masks score 0. Patches beyond the image are not part of a ring
    and do not make a patch rim. Source: METHODS 3.3.
    """
    features = normalised_features(features_hwc)
    if len(masks) == 0:
        return np.zeros(0, np.float32)
    # The border counts as inside, so that a mask at the image's edge has no rim there.
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
    # The cosine does not know the mean from the sum.
    directions = torch.nn.functional.normalize(flat @ features, dim=1)
    affinity: NDArray[np.float32] = (directions @ features.T).cpu().numpy().reshape(masks.shape)
    return affinity


def _means(values: NDArray[np.float32], masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean of `values` over each mask, (N,); 0 for an empty mask."""
    sums = np.where(masks, values, 0).sum(axis=(1, 2), dtype=np.float64)
    counts = np.count_nonzero(masks, axis=(1, 2))
    means: NDArray[np.float64] = sums / np.maximum(counts, 1)
    return means
