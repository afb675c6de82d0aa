"""Focal loss of objectness and pixel-wise loss of masks.

Losses are summed over the cells of a batch and divided by the number of positive cells of all workers, so
that they do not depend on the number of workers or on the division of a batch among them.
"""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0


def focal_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Focal loss of every cell with alpha 0.25 and gamma 2; `targets` in [0, 1] have the shape of `logits`.

    Source: Lin et al., arXiv 1708.02002, equation 5.

    >>> round(focal_loss(torch.zeros(1), torch.ones(1)).item(), 4)  # 0.25 (1 - 0.5)² log 2
    0.0433
    """
    probabilities = logits.sigmoid()
    missing = probabilities * (1 - targets) + (1 - probabilities) * targets
    weight = FOCAL_ALPHA * targets + (1 - FOCAL_ALPHA) * (1 - targets)
    cross_entropy = binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return weight * missing**FOCAL_GAMMA * cross_entropy


def dice_loss(probabilities: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """1 - 2 sum(w p m) / (sum(w p²) + sum(w m²)) of each of N masks, (N,); all (N, P), or `weights` (P,).

    Source: arXiv 1912.04488, equation 4.

    >>> loss = dice_loss(torch.tensor([[0.5, 1.0]]), torch.ones(1, 2), torch.tensor([1.0, 0.0]))
    >>> round(loss.item(), 4)  # 1 - 2 * 0.5 / (0.25 + 1)
    0.2
    """
    overlap = 2 * (weights * probabilities * targets).sum(dim=1)
    squares = (weights * (probabilities.square() + targets.square())).sum(dim=1)
    # Avoids division by 0 for an empty mask and an empty prediction.
    return 1 - overlap / (squares + 1e-6)


def pixel_mask_loss(logits: torch.Tensor, targets: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Dice and mean cross-entropy of each of N masks, (N,).

    `logits` and `targets` are (N, P) over the pixels of an image, `valid` (P,) is 1 on the image and 0 off
    it.
    """
    cross_entropy = binary_cross_entropy_with_logits(logits, targets, reduction="none") * valid
    return dice_loss(logits.sigmoid(), targets, valid) + cross_entropy.sum(dim=1) / valid.sum().clamp(min=1)
