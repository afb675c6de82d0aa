"""The loss of a batch: where objects are, and how they look."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from engine.errors import ConfigurationError
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
class ObjectiveConfig:
    """What the network is trained for: focal loss + weight x (mask term + soft_weight x soft loss)."""

    mask_term: Literal["superpixel", "pixel", "adaptive"] = "superpixel"
    """The hard superpixel loss, with pixels where an object contains no superpixel; or pixels alone; or
    pixels by how stable their object is and how far they are from its boundary, for later rounds."""
    soft_weight: float = 1.0
    """Weight of the soft superpixel loss; 0 does without."""
    mask_weight: float = 3.0
    """Weight of all mask terms beside the focal loss (arXiv 1912.04488, equation 1)."""
    superpixel_loss: SuperpixelLossConfig = field(default_factory=SuperpixelLossConfig)
    adaptive_loss: AdaptiveLossConfig = field(default_factory=AdaptiveLossConfig)

    def __post_init__(self) -> None:
        if self.soft_weight < 0 or self.mask_weight < 0:
            raise ConfigurationError(
                "objective.soft_weight and objective.mask_weight must not be negative, got "
                f"{self.soft_weight} and {self.mask_weight}"
            )

    @property
    def needs_superpixels(self) -> bool:
        """Whether images have to be cut into superpixels at all."""
        return self.mask_term == "superpixel" or self.soft_weight > 0

    @property
    def needs_stability(self) -> bool:
        """Whether labels have to carry the stability that a self-training round has measured."""
        return self.mask_term == "adaptive"


@dataclass(frozen=True, kw_only=True, eq=False)
class LossSums:
    """Sums over the cells of a batch, scalars on its device.

    `focal` goes with `positives`, the positive cells; `mask_term` (the hard loss and its stand-in) and `soft`
    with `masks`, the cells whose masks are learned, each times its weight. `fallbacks` counts those judged by
    pixels for want of a superpixel.
    """

    focal: torch.Tensor
    mask_term: torch.Tensor
    soft: torch.Tensor
    positives: torch.Tensor
    masks: torch.Tensor
    fallbacks: torch.Tensor

    def counts(self) -> torch.Tensor:
        """Positives, masks and fall-backs, float32 (3,): what workers add up."""
        return torch.stack([self.positives, self.masks, self.fallbacks]).float()

    def total(self, positives: torch.Tensor, masks: torch.Tensor, config: ObjectiveConfig) -> torch.Tensor:
        """The loss, given the positive cells and the weight of the learned masks of the whole batch."""
        mask_loss = self.mask_term + config.soft_weight * self.soft
        # Without a mask the sum is 0; the weights of a few may well add up to less than 1.
        return self.focal / positives.clamp(min=1) + config.mask_weight * mask_loss / masks.clamp(min=1e-6)


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskLosses:
    """What M masks of one image cost, each (M,).

    `mask_term` and `soft` enter the sums of a batch times `weights`, which say what each mask counts for
    among all of them. `falls_back` is 1 where pixels stood in for superpixels.
    """

    mask_term: torch.Tensor
    soft: torch.Tensor
    weights: torch.Tensor
    falls_back: torch.Tensor


def batch_losses(outputs: SoloOutputs, batch: Batch, config: ObjectiveConfig) -> LossSums:
    """The loss sums of a batch, in float32 whatever precision the network computed in."""
    is_known = batch.objectness.isfinite()
    targets = batch.objectness.nan_to_num(0.0)
    focal = (focal_loss(outputs.objectness.float(), targets) * is_known).sum()
    # Sums start from the outputs, so that a batch without objects still gives every weight a gradient (of 0).
    nothing = 0.0 * (outputs.kernels.sum() + outputs.mask_features.sum()).float()
    mask_term, soft, masks, fallbacks = nothing, nothing, nothing.detach(), nothing.detach()
    for image, image_targets in enumerate(batch.targets):
        if len(image_targets.cells) > 0:
            logits = outputs.mask_logits(image, image_targets.cells).flatten(1).float()
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
    """What the masks of an image's M learned cells cost, given as `logits` (M, P)."""
    none = logits.new_zeros(len(logits))
    mask_term, soft, weights, falls_back = none, none, torch.ones_like(none), none
    superpixels = targets.superpixels
    if superpixels is not None:
        probabilities = logits.sigmoid()
        regions = superpixel_probabilities(
            probabilities, superpixels.labels, superpixels.weights, len(superpixels.affinities)
        )
        if config.soft_weight > 0:
            soft = soft_loss(regions, soft_targets(regions, superpixels.affinities))
        if config.mask_term == "superpixel":
            states = superpixels.states[targets.owners]
            falls_back = (~has_positive(states)).float()
            mixed = None
            if config.superpixel_loss.mixed == "pixels":
                mixed = MixedPixels(
                    probabilities=probabilities,
                    targets=targets.masks[targets.owners],
                    weights=(states == IGNORED)[:, superpixels.labels] * targets.on_image,
                )
            hard = hard_loss(regions, states, superpixels.areas, mixed)
            mask_term = _with_pixels(hard, falls_back, logits, targets)
    if config.mask_term == "pixel":
        mask_term = _pixel_term(logits, targets, slice(None))
    adaptive = targets.adaptive
    if adaptive is not None:
        phi = adaptive.pixel_weights[targets.owners]
        mask_term = adaptive_mask_loss(logits, targets.masks[targets.owners], phi)
        weights = adaptive.instance_weights[targets.owners]
    return MaskLosses(mask_term=mask_term, soft=soft, weights=weights, falls_back=falls_back)


def _with_pixels(
    hard: torch.Tensor, falls_back: torch.Tensor, logits: torch.Tensor, targets: ImageTargets
) -> torch.Tensor:
    """The hard loss (M,) with pixels' judgement for those that fall back."""
    # These few are picked out: for the others pixels would cost as much as the rest.
    chosen = falls_back.nonzero().flatten()
    return hard.index_put((chosen,), _pixel_term(logits, targets, chosen))


def _pixel_term(logits: torch.Tensor, targets: ImageTargets, chosen: slice | torch.Tensor) -> torch.Tensor:
    return pixel_mask_loss(logits[chosen], targets.masks[targets.owners[chosen]], targets.on_image)
