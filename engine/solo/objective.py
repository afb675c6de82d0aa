"""The loss of a batch: where objects are, and how they look."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from engine.errors import ConfigurationError
from engine.solo.adaptive_loss import adaptive_mask_loss
from engine.solo.adaptive_targets import AdaptiveLossConfig
from engine.solo.batch import AdaptiveTensors, Batch, ImageTargets
from engine.solo.losses import focal_loss, pixel_mask_loss
from engine.solo.superpixel_loss import (
    hard_loss,
    has_positive,
    soft_loss,
    soft_targets,
    superpixel_probabilities,
)
from engine.solo.superpixel_targets import SuperpixelLossConfig

if TYPE_CHECKING:
    from engine.solo.network import SoloOutputs


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the network is trained for: focal loss + weight x (mask term + soft_weight x soft loss)."""

    mask_term: Literal["superpixel", "pixel", "adaptive"] = "superpixel"
    """The hard superpixel loss, with pixels where an object contains no whole superpixel; or pixels alone; or
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
    with `masks`, the cells whose masks are learned. `fallbacks` counts those judged by pixels for want of a
    whole superpixel.
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
        """The loss, given the numbers of positive cells and of learned masks of the whole batch."""
        mask_loss = self.mask_term + config.soft_weight * self.soft
        return self.focal / positives.clamp(min=1) + config.mask_weight * mask_loss / masks.clamp(min=1)


def batch_losses(outputs: SoloOutputs, batch: Batch, config: ObjectiveConfig) -> LossSums:
    """The loss sums of a batch, in float32 whatever precision the network computed in."""
    is_known = batch.objectness.isfinite()
    targets = batch.objectness.nan_to_num(0.0)
    focal = (focal_loss(outputs.objectness.float(), targets) * is_known).sum()
    # Sums start from the outputs, so that a batch without objects still gives every weight a gradient (of 0).
    nothing = 0.0 * (outputs.kernels.sum() + outputs.mask_features.sum()).float()
    mask_term, soft, fallbacks = nothing, nothing, torch.zeros_like(nothing)
    for image, image_targets in enumerate(batch.targets):
        if len(image_targets.cells) > 0:
            logits = outputs.mask_logits(image, image_targets.cells).flatten(1).float()
            terms = mask_losses(logits, image_targets, config)
            mask_term = mask_term + terms[0].sum()
            soft = soft + terms[1].sum()
            fallbacks = fallbacks + terms[2].sum()
    return LossSums(
        focal=focal,
        mask_term=mask_term,
        soft=soft,
        positives=targets.sum(),
        masks=torch.tensor(float(sum(len(t.cells) for t in batch.targets)), device=focal.device),
        fallbacks=fallbacks.detach(),
    )


def mask_losses(
    logits: torch.Tensor, targets: ImageTargets, config: ObjectiveConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mask term, soft loss and whether pixels stood in for superpixels, each (M,), for logits (M, P)."""
    none = torch.zeros(len(logits), device=logits.device, dtype=logits.dtype)
    superpixels = targets.superpixels
    if superpixels is None:
        return _pixel_term(logits, targets, slice(None)), none, none
    regions = superpixel_probabilities(
        logits.sigmoid(), superpixels.labels, superpixels.weights, len(superpixels.affinities)
    )
    soft = soft_loss(regions, soft_targets(regions, superpixels.affinities)) if config.soft_weight else none
    if config.mask_term == "pixel":
        return _pixel_term(logits, targets, slice(None)), soft, none
    states = superpixels.states[targets.owners]
    falls_back = ~has_positive(states)
    term = hard_loss(regions, states)
    # The few that pixels have to judge are picked out: for the others they would cost as much as the rest.
    chosen = falls_back.nonzero().flatten()
    term = term.index_put((chosen,), _pixel_term(logits, targets, chosen))
    return term, soft, falls_back


def _pixel_term(logits: torch.Tensor, targets: ImageTargets, chosen: slice | torch.Tensor) -> torch.Tensor:
    return pixel_mask_loss(logits[chosen], targets.masks[targets.owners[chosen]], targets.on_image)
