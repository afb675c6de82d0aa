"""The superpixel-guided mask loss: a hard and a soft loss over superpixels (docs/methods.md, 4).

Source: "Unsupervised Instance Segmentation with Superpixels", arXiv 2509.05352, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.solo.losses import dice_loss
from engine.solo.superpixel_targets import IGNORED, POSITIVE


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


@dataclass(frozen=True, kw_only=True, eq=False)
class MixedPixels:
    """Pixel-wise terms for superpixels that are neither positive nor negative, each float32 (N, P).

    `weights` are 1 in these superpixels and 0 elsewhere; `targets` are 0 or 1.
    """

    probabilities: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor


def hard_loss(
    superpixels: torch.Tensor, states: torch.Tensor, areas: torch.Tensor, mixed: MixedPixels | None = None
) -> torch.Tensor:
    """Dice and mean cross-entropy of P_k (N, K) over the labelled superpixels of each of N masks, (N,).

    `states` (N, K) and `areas` (K,) are those of `SuperpixelTargets`; superpixels are weighted by area. For
    superpixels of one pixel this is `pixel_mask_loss`.

    The paper has cross-entropy alone, in which small objects have little weight. Equal total weights of
    positives and negatives correct this, but then distant superpixels have little weight, and masks leak:
    overfitted to the true masks of eight photographs, box AP50 is 0.79 with equal weights and 0.93 with dice,
    which SOLO itself uses.
    """
    weights = areas * (states != IGNORED)
    targets = (states == POSITIVE).to(superpixels.dtype)
    predicted = superpixels
    if mixed is not None:
        predicted = torch.cat([predicted, mixed.probabilities], dim=1)
        targets = torch.cat([targets, mixed.targets], dim=1)
        weights = torch.cat([weights, mixed.weights], dim=1)
    # Clamping keeps NaN, so that the trainer notices it.
    entropy = -torch.where(targets > 0, predicted, 1 - predicted).clamp(min=1e-12).log()
    cross_entropy = (entropy * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    return dice_loss(predicted, targets, weights) + cross_entropy


def soft_targets(superpixels: torch.Tensor, affinities: torch.Tensor) -> torch.Tensor:
    """P^_k = sum_l psi_kl P_l / sum_l psi_kl for N masks, (N, K), detached.

    `affinities` (K, K) are psi with rows that sum to 1.
    """
    return superpixels.detach() @ affinities.T


def soft_loss(superpixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """mean_k |P_k - P^_k| of each of N masks, (N,); both are (N, K)."""
    return (superpixels - targets).abs().mean(dim=1)


def has_positive(states: torch.Tensor) -> torch.Tensor:
    """Whether each of N instances has a positive superpixel, bool (N,); if not, its loss is pixel-wise."""
    return (states == POSITIVE).any(dim=1)
