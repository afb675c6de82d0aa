"""Choose MultiCut's bias for a new domain from a few dozen of its images, without any ground truth.

A low bias leaves the image in one piece, a high one shatters it. In between is where parts are many and still
stand out from what is around them, and the criterion is the product of the two: entropy times contrast.

- Entropy of the parts, in nats: H = -sum_k p_k ln p_k, p_k = the share of the patches in part k. It is what
  the partition tells about where a patch is; it is 0 for one part, and highest for equal parts.
- Contrast: the mean of R(M) over the candidates (engine.proposals.mask_filter). It falls once borders are
  drawn where nothing changes.

Either alone is highest at one of the extremes. The criterion is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import entropy

from engine.proposals.affinity_graph import edge_affinities, grid_edges
from engine.proposals.mask_filter import MaskFilterConfig, score_masks
from engine.proposals.multicut import MultiCutConfig, part_masks, solve_multicut

# Shares of the edges that should be cut: the biases tried are the affinities that they lie below.
_QUANTILES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6)


@dataclass(frozen=True, kw_only=True)
class BiasScore:
    """What partitions at one bias are like, means over the images: entropy in nats, contrast R(M), candidates
    an image, and the criterion, entropy times contrast."""

    bias: float
    entropy: float
    contrast: float
    num_masks: float
    criterion: float


def choose_bias(scores: Sequence[BiasScore]) -> float:
    """The bias with the highest criterion, the lowest of equals; `scores` are not empty."""
    return min(scores, key=lambda score: (-score.criterion, score.bias)).bias


def score_biases(
    features_bhwc: torch.Tensor, names: Sequence[str], config: MultiCutConfig, mask_filter: MaskFilterConfig
) -> Iterator[BiasScore]:
    """Scores of a dozen biases, the same for all distances, rising; they span where the affinities lie.

    `features_bhwc` (B, h, w, C) are those of B images with `names`. The biases of `config` do not count.
    Raises ImageError, with the image's name, where features are NaN or infinite.
    """
    affinities = [
        edge_affinities(features_bhwc[i : i + 1], config.offsets, names[i : i + 1])[0].cpu().numpy()
        for i in range(len(features_bhwc))
    ]
    # Two digits are what a person copies.
    for bias in np.unique(np.quantile(affinities, _QUANTILES).round(2)):
        cut = replace(config, biases=(float(bias),) * len(config.distances))
        rows = [
            _score_partition(features, affinity, cut, mask_filter)
            for features, affinity in zip(features_bhwc, affinities, strict=True)
        ]
        means = np.mean([(*row, row[0] * row[1]) for row in rows], axis=0)
        yield BiasScore(
            bias=float(bias),
            entropy=float(means[0]),
            contrast=float(means[1]),
            num_masks=float(means[2]),
            criterion=float(means[3]),
        )


def _score_partition(
    features_hwc: torch.Tensor,
    affinities: NDArray[np.float32],
    config: MultiCutConfig,
    mask_filter: MaskFilterConfig,
) -> tuple[float, float, int]:
    """Entropy, contrast and number of candidates of one image's partition."""
    size = (features_hwc.shape[0], features_hwc.shape[1])
    uv, classes = grid_edges(size, config.offsets)
    cost = affinities - config.offset_biases[classes]
    labels = solve_multicut(size[0] * size[1], uv, cost, config.starts, config.seed)
    masks = part_masks(labels.reshape(size), config)
    contrast = float(score_masks(features_hwc, masks, mask_filter).mean()) if len(masks) > 0 else 0.0
    return float(entropy(np.bincount(labels))), contrast, len(masks)
