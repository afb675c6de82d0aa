"""The training loss of a batch: focal loss of objectness and mask losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from engine.bounds import Bounded, NotNegative
from engine.solo.adaptive_loss import adaptive_mask_loss
from engine.solo.adaptive_targets import AdaptiveLossConfig
from engine.solo.batch import Batch, ImageTargets
from engine.solo.losses import focal_loss, pixel_mask_loss
from engine.solo.superpixel_loss import (
    MixedPixels,
    hard_loss,
    has_positive,
    soft_loss,
    soft_targets,
    superpixel_probabilities,
)
from engine.solo.superpixel_targets import IGNORED, SuperpixelLossConfig

if TYPE_CHECKING:
    from engine.solo.network import SoloOutputs


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Bounded):
    """The training loss: focal loss + mask_weight x (mask term + soft_weight x soft loss)."""

    mask_term: Literal["superpixel", "pixel", "adaptive"] = "superpixel"
    """superpixel: the hard superpixel loss, pixel-wise for objects without a whole superpixel; pixel: the
    pixel-wise loss; adaptive, for later rounds: the pixel-wise loss weighted by stability and distance from
    the boundary."""
    soft_weight: NotNegative = 1.0
    """Weight of the soft superpixel loss; 0 turns it off."""
    mask_weight: NotNegative = 3.0
    """Weight of all mask terms relative to the focal loss (arXiv 1912.04488, equation 1)."""
    superpixel_loss: SuperpixelLossConfig = field(default_factory=SuperpixelLossConfig)
    adaptive_loss: AdaptiveLossConfig = field(default_factory=AdaptiveLossConfig)

    @property
    def needs_superpixels(self) -> bool:
        """Whether the loss needs superpixels."""
        return self.mask_term == "superpixel" or self.soft_weight > 0

    @property
    def needs_stability(self) -> bool:
        """Whether the loss needs labels with the stability that a self-training round measures."""
        return self.mask_term == "adaptive"


@dataclass(frozen=True, kw_only=True, eq=False)
class LossSums:
    """Sums over the cells of a batch, scalars on its device.

    `focal` is normalised by `positives`, the number of positive cells; `mask_term` and `soft` by `masks`, the
    sum of the weights of the learned masks. `fallbacks` counts the masks with a pixel-wise loss because their
    object contains no superpixel.
    """

    focal: torch.Tensor
    mask_term: torch.Tensor
    soft: torch.Tensor
    positives: torch.Tensor
    masks: torch.Tensor
    fallbacks: torch.Tensor

    def counts(self) -> torch.Tensor:
        """Positives, masks and fallbacks, float32 (3,), which are summed over workers."""
        return torch.stack([self.positives, self.masks, self.fallbacks]).float()

    def total(self, positives: torch.Tensor, masks: torch.Tensor, config: ObjectiveConfig) -> torch.Tensor:
        """The loss, given the positive cells and the sum of mask weights of the whole batch."""
        mask_loss = self.mask_term + config.soft_weight * self.soft
        # The sum of weights is 0 without masks and may be below 1 with few.
        return self.focal / positives.clamp(min=1) + config.mask_weight * mask_loss / masks.clamp(min=1e-6)


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskLosses:
    """Losses of M masks of one image, each (M,).

    `mask_term` and `soft` are multiplied by `weights` in the sums of a batch. `falls_back` is 1 for masks
    with a pixel-wise loss because their object contains no superpixel.
    """

    mask_term: torch.Tensor
    soft: torch.Tensor
    weights: torch.Tensor
    falls_back: torch.Tensor


def batch_losses(outputs: SoloOutputs, batch: Batch, config: ObjectiveConfig) -> LossSums:
    """The loss sums of a batch, in float32 even if the network ran in half precision."""
    objectness = batch.objectness
    targets = objectness.nan_to_num(0.0)
    focal = (focal_loss(outputs.objectness.float(), targets) * objectness.isfinite()).sum()
    # Sums start from the outputs, so that every weight has a gradient (of 0) in a batch without objects.
    zero = 0.0 * (outputs.kernels.sum() + outputs.mask_features.sum()).float()
    mask_term, soft, masks, fallbacks = zero, zero, zero.detach(), zero.detach()
    for image, image_targets in enumerate(batch.targets):
        cells = image_targets.cells.indices
        if len(cells) > 0:
            logits = outputs.mask_logits(image, cells).flatten(1).float()
            losses = mask_losses(logits, image_targets, config)
            mask_term = mask_term + (losses.weights * losses.mask_term).sum()
            soft = soft + (losses.weights * losses.soft).sum()
            masks = masks + losses.weights.sum()
            fallbacks = fallbacks + losses.falls_back.sum()
    return LossSums(
        focal=focal,
        mask_term=mask_term,
        soft=soft,
        positives=targets.sum(),
        masks=masks,
        fallbacks=fallbacks,
    )


def mask_losses(logits: torch.Tensor, targets: ImageTargets, config: ObjectiveConfig) -> MaskLosses:
    """The losses of the masks of an image's M learned cells, given as `logits` (M, P)."""
    zeros = logits.new_zeros(len(logits))
    mask_term, soft, weights, falls_back = zeros, zeros, torch.ones_like(zeros), zeros
    superpixels, instances = targets.superpixels, targets.cells.instance_of_cell
    if superpixels is not None:
        probabilities = logits.sigmoid()
        regions = superpixel_probabilities(
            probabilities, superpixels.labels, superpixels.weights, len(superpixels.affinities)
        )
        if config.soft_weight > 0:
            soft = soft_loss(regions, soft_targets(regions, superpixels.affinities))
        if config.mask_term == "superpixel":
            states = superpixels.states[instances]
            falls_back = (~has_positive(states)).float()
            mixed = None
            if config.superpixel_loss.mixed == "pixels":
                mixed = MixedPixels(
                    probabilities=probabilities,
                    targets=targets.masks[instances],
                    weights=(states == IGNORED)[:, superpixels.labels] * targets.on_image,
                )
            hard = hard_loss(regions, states, superpixels.areas, mixed)
            mask_term = _with_pixels(hard, falls_back, logits, targets)
    if config.mask_term == "pixel":
        mask_term = _pixel_term(logits, targets, slice(None))
    adaptive = targets.adaptive
    if adaptive is not None:
        phi = adaptive.pixel_weights[instances]
        mask_term = adaptive_mask_loss(logits, targets.masks[instances], phi)
        weights = adaptive.instance_weights[instances]
    return MaskLosses(mask_term=mask_term, soft=soft, weights=weights, falls_back=falls_back)


def _with_pixels(
    hard: torch.Tensor, falls_back: torch.Tensor, logits: torch.Tensor, targets: ImageTargets
) -> torch.Tensor:
    """The hard loss (M,), replaced by the pixel-wise loss for the masks that fall back."""
    # Only these few are computed: for all masks it would double the cost of the loss.
    chosen = falls_back.nonzero().flatten()
    return hard.index_put((chosen,), _pixel_term(logits, targets, chosen))


def _pixel_term(logits: torch.Tensor, targets: ImageTargets, chosen: slice | torch.Tensor) -> torch.Tensor:
    instances = targets.cells.instance_of_cell[chosen]
    return pixel_mask_loss(logits[chosen], targets.masks[instances], targets.on_image)
