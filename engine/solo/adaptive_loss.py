"""The adaptive loss: what is stable counts more, and what is close to a mask's boundary less (METHODS 6).

Source: "Unsupervised Instance Segmentation with Superpixels", arXiv 2509.05352, section 3.3.
"""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from engine.solo.losses import dice_loss


def adaptive_mask_loss(
    logits: torch.Tensor, targets: torch.Tensor, pixel_weights: torch.Tensor
) -> torch.Tensor:
    """phi-weighted mean cross-entropy + 1 - 2 sum phi p m / (sum phi p² + sum phi m² + 1e-6) of each of N
    masks, (N,); all are (N, P) over the pixels of an image, `pixel_weights` is phi.

    What the masks of a batch count for among one another, their stability, is left to who adds them up.

    >>> logits, masks = torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 1.0]])
    >>> loss = adaptive_mask_loss(logits, masks, torch.tensor([[1.0, 1.0, 0.0]]))
    >>> round(loss.item(), 4)  # log 2 + 1 - 2 * 0.5 / (0.25 + 0.25 + 1)
    1.0265
    """
    entropy = binary_cross_entropy_with_logits(logits, targets, reduction="none") * pixel_weights
    mean_entropy = entropy.sum(dim=1) / pixel_weights.sum(dim=1).clamp(min=1e-6)
    return dice_loss(logits.sigmoid(), targets, pixel_weights) + mean_entropy
