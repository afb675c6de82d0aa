"""The adaptive loss: pixels close to a mask's boundary have low weights (docs/methods.md, 6).

Source: "Unsupervised Instance Segmentation with Superpixels", arXiv 2509.05352, section 3.3.
"""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from engine.solo.losses import dice_loss


def adaptive_mask_loss(
    logits: torch.Tensor, targets: torch.Tensor, pixel_weights: torch.Tensor
) -> torch.Tensor:
    """Weighted cross-entropy and dice of each of N masks, (N,); all arguments are (N, P) over P pixels.

    With p = sigmoid(logits), m = targets and phi = `pixel_weights`: the phi-weighted mean cross-entropy
    + 1 - 2 sum phi p m / (sum phi p² + sum phi m² + 1e-6). The instances' weights by stability are applied by
    the caller.

    >>> logits, masks = torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 1.0]])
    >>> loss = adaptive_mask_loss(logits, masks, torch.tensor([[1.0, 1.0, 0.0]]))
    >>> round(loss.item(), 4)  # log 2 + 1 - 2 * 0.5 / (0.25 + 0.25 + 1)
    1.0265
    """
    entropy = binary_cross_entropy_with_logits(logits, targets, reduction="none") * pixel_weights
    mean_entropy = entropy.sum(dim=1) / pixel_weights.sum(dim=1).clamp(min=1e-6)
    return dice_loss(logits.sigmoid(), targets, pixel_weights) + mean_entropy
