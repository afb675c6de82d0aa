"""Unsupervised choice of MultiCut's biases for a new domain from a few dozen of its images.

A single shift is added to the biases of all distances. Low biases leave the image in one piece, high ones
shatter it. The criterion, which is ours, is a product of entropy, contrast and wholeness; each of these alone
is highest at one of the extremes.

- Entropy of the parts, in nats: H = -sum_k p_k ln p_k, p_k = the share of the patches in part k. It is the
  information of the partition about a patch's position: 0 for one part, maximal for parts of equal size.
- Contrast: the mean of R(M) over the candidates (engine.proposals.mask_filter), weighted by the square root
  of their number of patches. It falls when boundaries are drawn in homogeneous areas.
- Wholeness: the share of the parts with more than one patch. It falls when textures are split into single
  patches, which have a high contrast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import entropy

from engine.proposals.affinity_graph import edge_affinities, grid_edges
from engine.proposals.config import MaskFilterConfig, MultiCutConfig
from engine.proposals.mask_filter import score_masks
from engine.proposals.multicut import part_masks, solve_multicut

# Shares of the edges with negative cost, which define the biases that are tried.
_QUANTILES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6)


@dataclass(frozen=True, kw_only=True)
class BiasScore:
    """Statistics of the partitions at some biases, one per distance, averaged over images.

    `entropy` is in nats, `contrast` the mean R(M), `num_masks` the candidates per image, and `criterion` the
    mean product of entropy, contrast and wholeness.
    """

    biases: tuple[float, ...]
    entropy: float
    contrast: float
    wholeness: float
    num_masks: float
    criterion: float


def choose_biases(scores: Sequence[BiasScore]) -> tuple[float, ...]:
    """The biases with the highest criterion, ties to the lowest; `scores` must not be empty."""
    return min(scores, key=lambda score: (-score.criterion, score.biases)).biases


def score_biases(
    features_bhwc: torch.Tensor, names: Sequence[str], config: MultiCutConfig, mask_filter: MaskFilterConfig
) -> Iterator[BiasScore]:
    """Scores of a dozen settings in ascending order, which span the range of the affinities.

    Each setting is the biases of `config` plus one shift. `features_bhwc` (B, h, w, C) are the features of B
    images with `names`. Raises ImageError with the image's name if features are NaN or infinite.
    """
    affinities = [
        edge_affinities(features_bhwc[i : i + 1], config.offsets, names[i : i + 1])[0].cpu().numpy()
        for i in range(len(features_bhwc))
    ]
    _, classes = grid_edges((features_bhwc.shape[1], features_bhwc.shape[2]), config.offsets)
    costs = affinities - config.offset_biases[classes]
    # Two digits are easy to copy to a command line.
    for shift in np.unique(np.quantile(costs, _QUANTILES).round(2)):
        biases = tuple(round(bias + float(shift), 4) for bias in config.biases)
        cut = replace(config, biases=biases)
        rows = [
            _score_partition(features, affinity, cut, mask_filter)
            for features, affinity in zip(features_bhwc, affinities, strict=True)
        ]
        means = np.mean([(*row, np.prod(row[:3])) for row in rows], axis=0)
        yield BiasScore(
            biases=biases,
            entropy=float(means[0]),
            contrast=float(means[1]),
            wholeness=float(means[2]),
            num_masks=float(means[3]),
            criterion=float(means[4]),
        )


def _score_partition(
    features_hwc: torch.Tensor,
    affinities: NDArray[np.float32],
    config: MultiCutConfig,
    mask_filter: MaskFilterConfig,
) -> tuple[float, float, float, int]:
    """Entropy, contrast, wholeness and number of candidates of one image's partition."""
    size = (features_hwc.shape[0], features_hwc.shape[1])
    uv, classes = grid_edges(size, config.offsets)
    cost = affinities - config.offset_biases[classes]
    labels = solve_multicut(size[0] * size[1], uv, cost, config.starts, config.seed)
    areas = np.bincount(labels)
    masks = part_masks(labels.reshape(size), config)
    contrast = 0.0
    if len(masks) > 0:
        weights = np.sqrt(np.count_nonzero(masks, axis=(1, 2)))
        contrast = float(np.average(score_masks(features_hwc, masks, mask_filter), weights=weights))
    return float(entropy(areas)), contrast, float((areas > 1).mean()), len(masks)
