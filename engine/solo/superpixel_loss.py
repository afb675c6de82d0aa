"""The superpixel-guided mask loss: masks are judged superpixel by superpixel (METHODS 4).

Source: "Unsupervised Instance Segmentation with Superpixels", arXiv 2509.05352, section 3.2.
"""

from __future__ import annotations

import torch

from engine.solo.superpixel_targets import NEGATIVE, POSITIVE


def superpixel_probabilities(
    probabilities: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, num_labels: int
) -> torch.Tensor:
    """P_k = sum_{i in S_k} m_i delta_i / sum_{i in S_k} delta_i of N masks: (N, P) -> (N, K).

    `labels` int64 (P,) and `weights` (P,) as in `SuperpixelTargets`.

    >>> masks = torch.tensor([[1.0, 0.0, 0.5]])
    >>> superpixel_probabilities(masks, torch.tensor([0, 0, 1]), torch.tensor([0.75, 0.25, 1.0]), 2).tolist()
    [[0.75, 0.5]]
    """
    weighted = (probabilities * weights).T
    sums = torch.zeros((num_labels, len(probabilities)), dtype=weighted.dtype, device=weighted.device)
    return sums.index_add(0, labels, weighted).T


def hard_loss(superpixels: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of P_k (N, K) against the labelled superpixels of each of N masks, (N,).

    `states` (N, K) are those of `SuperpixelTargets`. Positives and negatives weigh half each; where there are
    none of a kind, its half is 0.
    """
    return 0.5 * (
        _mean_entropy(superpixels, states == POSITIVE) + _mean_entropy(1 - superpixels, states == NEGATIVE)
    )


def soft_targets(superpixels: torch.Tensor, affinities: torch.Tensor) -> torch.Tensor:
    """P^_k = sum_l psi_kl P_l / sum_l psi_kl for N masks, (N, K), a constant to gradients.

    `affinities` (K, K) are psi with rows of sum 1.
    """
    return superpixels.detach() @ affinities.T


def soft_loss(superpixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """mean_k |P_k - P^_k| of each of N masks, (N,); both are (N, K)."""
    return (superpixels - targets).abs().mean(dim=1)


def has_positive(states: torch.Tensor) -> torch.Tensor:
    """Which of N instances contain a whole superpixel, bool (N,); the others are judged pixel by pixel."""
    return (states == POSITIVE).any(dim=1)


def _mean_entropy(probabilities: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Mean of -log p over the chosen of (N, K), (N,); NaN stays NaN, so that it is noticed."""
    entropy = -probabilities.clamp(min=1e-12).log() * chosen
    return entropy.sum(dim=1) / chosen.sum(dim=1).clamp(min=1)
