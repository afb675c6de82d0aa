"""Patch-level contrast: patches of one region of an image have similar keys in every view.

Labelling uses the keys of an encoder's last block and their cosines, so the loss acts on the keys alone.
Regions come from the superpixel hierarchy, without labels, as in DetCon (Hénaff et al., ICCV 2021, arXiv
2103.10957); learning to group from a hierarchy of regions is from Zhang & Maire (NeurIPS 2020, arXiv
2012.03044).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from engine.bounds import Bounded, Bounds, Count, NotNegative, Positive, Share
from engine.errors import ConfigurationError
from engine.superpixels.boundary import BoundaryConfig
from engine.superpixels.hierarchy import HierarchyConfig, build_hierarchy
from engine.superpixels.segmentation import to_unit_rgb

_MAX_REGIONS = 256
_RegionCount = Annotated[int, Bounds(2, _MAX_REGIONS, "a number of regions")]


@dataclass(frozen=True, kw_only=True)
class RegionConfig(Bounded):
    """The patch-level loss."""

    weight: NotNegative = 1.0
    """Weight of this loss in the sum; with 0, superpixels are not computed."""
    counts: tuple[_RegionCount, ...] = (8, 16, 32)
    """Numbers of regions per image; one of them is drawn for each sample."""
    temperature: Positive = 0.1
    """Softmax temperature of the contrast between regions."""
    within_share: Share = 0.5
    """Share of the loss term that compares a patch with the regions of its own image only."""
    same_cosine: Annotated[float, Bounds(-1, 1, "a cosine", above=True, below=True)] = -0.15
    """In that term: the cosine above which a patch belongs to a region. Lower than the threshold of proposals
    (tau_b, 0.2): patches of whole new images are more alike than those of views."""
    min_patches: Count = 2
    """Smallest number of patches of a region in a view; smaller ones are left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.counts:
            raise ConfigurationError("counts needs at least one number of regions")


def cut_regions(image_hwc: NDArray[np.uint8], counts: tuple[int, ...]) -> NDArray[np.uint8]:
    """Region labels of an image (H, W, 3), one plane per count: uint8 (H, W, len(counts))."""
    hierarchy = build_hierarchy(to_unit_rgb(image_hwc), BoundaryConfig(), HierarchyConfig(), max(counts))
    return np.stack([hierarchy.cut_at_count(count) for count in counts], axis=-1).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """The loss, and the share of patches whose most similar region, in their image, is their own."""

    loss: torch.Tensor
    accuracy: torch.Tensor


def contrast_regions(keys: torch.Tensor, labels: torch.Tensor, config: RegionConfig) -> Contrast:
    """Contrast of the patches of each view with the regions of the other view.

    InfoNCE over the regions of the whole batch, and a logistic loss over those of the patch's image.

    `keys` (2, B, N, C) are patch keys of two views of B images, `labels` (2, B, N) the patches' regions. A
    region's vector is the mean direction of its patches. If no region shows in both views, the loss is 0.
    """
    directions = functional.normalize(keys.float(), dim=-1)
    one, other = (_contrast(directions, labels, config, view) for view in (0, 1))
    return Contrast(loss=(one.loss + other.loss) / 2, accuracy=(one.accuracy + other.accuracy) / 2)


def _contrast(directions: torch.Tensor, labels: torch.Tensor, config: RegionConfig, view: int) -> Contrast:
    """Contrast of the patches of `view` with the regions of the other view."""
    patches, own, others = directions[view], labels[view], labels[1 - view]
    # One slot per possible label and image, whether or not the region is shown.
    slots = _MAX_REGIONS * torch.arange(len(own), device=own.device)[:, None]
    counts = torch.bincount((others + slots).flatten(), minlength=len(own) * _MAX_REGIONS)
    is_shown = counts >= config.min_patches
    is_matched = is_shown[own + slots]
    if not is_matched.any():
        return Contrast(loss=directions.sum() * 0.0, accuracy=directions.new_zeros(()))
    sums = directions.new_zeros(len(is_shown), directions.shape[-1])
    sums = sums.index_add(0, (others + slots).flatten(), directions[1 - view].flatten(0, 1))
    regions = functional.normalize(sums[is_shown], dim=-1)
    # Index of each shown region in the batch, and in its image.
    in_batch = is_shown.cumsum(0) - 1
    in_image = is_shown.reshape(len(own), _MAX_REGIONS).cumsum(1) - 1
    among_all = functional.cross_entropy(
        patches[is_matched] @ (regions / config.temperature).T, in_batch[own + slots][is_matched]
    )
    image_of_region = is_shown.nonzero()[:, 0] // _MAX_REGIONS
    max_regions = int(in_image.max()) + 1
    slot_of_region = max_regions * image_of_region + in_image.flatten()[is_shown]
    by_image = regions.new_zeros(len(own) * max_regions, regions.shape[-1]).index_copy(
        0, slot_of_region, regions
    )
    cosines = patches @ by_image.reshape(len(own), max_regions, -1).mT
    exists = torch.arange(max_regions, device=own.device) <= in_image[:, -1:]
    is_own = functional.one_hot(in_image.gather(1, own).clamp(min=0), max_regions).bool()
    within = _contrast_within(cosines, is_own, exists[:, None], is_matched, config)
    nearest = cosines.masked_fill(~exists[:, None], -torch.inf).argmax(dim=2, keepdim=True)
    return Contrast(
        loss=(1 - config.within_share) * among_all + config.within_share * within,
        accuracy=is_own.gather(2, nearest)[is_matched].float().mean(),
    )


def _contrast_within(
    cosines: torch.Tensor,
    is_own: torch.Tensor,
    exists: torch.Tensor,
    is_matched: torch.Tensor,
    config: RegionConfig,
) -> torch.Tensor:
    """Logistic loss of `cosines` (B, N, R) of patches and regions above `same_cosine`: half for the patch's
    own region, half for the others of its image.

    `is_own` (B, N, R) marks a patch's region, `exists` (B, 1, R) the regions that are shown, `is_matched`
    (B, N) the patches whose region is. Not a softmax, which ignores a constant in all cosines, whereas
    proposals compare cosines with fixed thresholds.
    """
    margins = (cosines - config.same_cosine) / config.temperature
    pull = (functional.softplus(-margins) * is_own).sum(dim=2)
    others = exists & ~is_own
    push = (functional.softplus(margins) * others).sum(dim=2) / others.sum(dim=2).clamp(min=1)
    return (pull + push)[is_matched].mean() / 2
