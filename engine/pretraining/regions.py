"""Patch-level contrast: patches of one region of an image have like keys, whichever view they are seen in.

What labelling uses of an encoder are the keys of its last block and their cosines, so the loss acts on these
and on nothing behind them. Regions come from the superpixel hierarchy, without labels, as in DetCon (Hénaff
et al., ICCV 2021, arXiv 2103.10957); that a hierarchy of regions teaches a network to group is from Zhang &
Maire (NeurIPS 2020, arXiv 2012.03044).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from engine.errors import ConfigurationError
from engine.superpixels.boundary import BoundaryConfig
from engine.superpixels.hierarchy import HierarchyConfig, build_hierarchy
from engine.superpixels.segmentation import to_unit_rgb

_MAX_REGIONS = 256


@dataclass(frozen=True, kw_only=True)
class RegionConfig:
    """The patch-level loss."""

    weight: float = 1.0
    """Share of this loss in the sum; 0 leaves it out, and superpixels are not computed."""
    counts: tuple[int, ...] = (8, 16, 32)
    """Regions per image; every time an image is seen, one of these is drawn."""
    temperature: float = 0.1
    """Sharpness of the contrast between regions."""
    within_share: float = 0.5
    """Share of the part of the loss that compares a patch with the regions of its own image alone."""
    same_cosine: float = -0.15
    """In that part: the cosine above which patch and region are to be one. Lower than what proposals compare
    cosines with (tau_b, 0.2): patches of whole images, never seen before, are more alike than those of
    views."""
    min_patches: int = 2
    """A region counts in a view where it covers so many patches."""

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ConfigurationError(f"regions.weight must not be negative, got {self.weight}")
        if not self.counts or min(self.counts) < 2 or max(self.counts) > _MAX_REGIONS:
            raise ConfigurationError(f"regions.counts are 2 to {_MAX_REGIONS} regions, got {self.counts}")
        if self.temperature <= 0:
            raise ConfigurationError(f"regions.temperature must be above 0, got {self.temperature}")
        if not -1 < self.same_cosine < 1:
            raise ConfigurationError(f"regions.same_cosine is a cosine, got {self.same_cosine}")
        if not 0 <= self.within_share <= 1:
            raise ConfigurationError(f"regions.within_share is a share, 0 to 1, got {self.within_share}")
        if self.min_patches < 1:
            raise ConfigurationError(f"regions.min_patches must be at least 1, got {self.min_patches}")


def cut_regions(image_hwc: NDArray[np.uint8], counts: tuple[int, ...]) -> NDArray[np.uint8]:
    """Labels of the regions of an image (H, W, 3), one plane for each count: uint8 (H, W, len(counts))."""
    hierarchy = build_hierarchy(to_unit_rgb(image_hwc), BoundaryConfig(), HierarchyConfig(), max(counts))
    return np.stack([hierarchy.cut_at_count(count) for count in counts], axis=-1).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """The loss, and the share of patches to whom of their image's regions their own is most alike."""

    loss: torch.Tensor
    accuracy: torch.Tensor


def contrast_regions(keys: torch.Tensor, labels: torch.Tensor, config: RegionConfig) -> Contrast:
    """Contrast of the patches of each view with the regions of the other view.

    InfoNCE among the regions of the whole batch, and a logistic loss among those of the patch's image.

    `keys` (2, B, N, C) are those of two views of B images, `labels` (2, B, N) the regions of their patches.
    A region's vector is the mean direction of its patches. Where none shows in both views, the loss is 0.
    """
    directions = functional.normalize(keys.float(), dim=-1)
    one, other = (_contrast(directions, labels, config, view) for view in (0, 1))
    return Contrast(loss=(one.loss + other.loss) / 2, accuracy=(one.accuracy + other.accuracy) / 2)


def _contrast(directions: torch.Tensor, labels: torch.Tensor, config: RegionConfig, view: int) -> Contrast:
    """The patches of `view` against the regions of the other."""
    patches, own, others = directions[view], labels[view], labels[1 - view]
    # A region has a place for each name that it could have, whether it is there or not.
    places = _MAX_REGIONS * torch.arange(len(own), device=own.device)[:, None]
    counts = torch.bincount((others + places).flatten(), minlength=len(own) * _MAX_REGIONS)
    is_shown = counts >= config.min_patches
    is_matched = is_shown[own + places]
    if not is_matched.any():
        return Contrast(loss=directions.sum() * 0.0, accuracy=directions.new_zeros(()))
    sums = directions.new_zeros(len(is_shown), directions.shape[-1])
    sums = sums.index_add(0, (others + places).flatten(), directions[1 - view].flatten(0, 1))
    regions = functional.normalize(sums[is_shown], dim=-1)
    # Numbers among the regions of the whole batch, and among those of the region's image.
    in_batch = is_shown.cumsum(0) - 1
    in_image = is_shown.reshape(len(own), _MAX_REGIONS).cumsum(1) - 1
    among_all = functional.cross_entropy(
        patches[is_matched] @ (regions / config.temperature).T, in_batch[own + places][is_matched]
    )
    image_of_region = is_shown.nonzero()[:, 0] // _MAX_REGIONS
    most = int(in_image.max()) + 1
    place_of_region = most * image_of_region + in_image.flatten()[is_shown]
    by_image = regions.new_zeros(len(own) * most, regions.shape[-1]).index_copy(0, place_of_region, regions)
    cosines = patches @ by_image.reshape(len(own), most, -1).mT
    exists = torch.arange(most, device=own.device) <= in_image[:, -1:]
    is_own = functional.one_hot(in_image.gather(1, own).clamp(min=0), most).bool()
    within = _contrast_within(cosines, is_own, exists[:, None], is_matched, config)
    found = cosines.masked_fill(~exists[:, None], -torch.inf).argmax(dim=2, keepdim=True)
    return Contrast(
        loss=(1 - config.within_share) * among_all + config.within_share * within,
        accuracy=is_own.gather(2, found)[is_matched].float().mean(),
    )


def _contrast_within(
    cosines: torch.Tensor,
    is_own: torch.Tensor,
    exists: torch.Tensor,
    is_matched: torch.Tensor,
    config: RegionConfig,
) -> torch.Tensor:
    """Logistic loss of patches against the regions of their image by how far `cosines` (B, N, R) are above
    the line, half for the own region and half for the others.

    `is_own` (B, N, R) is a patch's region, `exists` (B, 1, R) says which there are, and `is_matched` (B, N)
    whether the patch's is among them. A softmax would not do: it is blind to what all cosines have in common,
    and proposals compare them with fixed numbers.
    """
    margins = (cosines - config.same_cosine) / config.temperature
    pull = (functional.softplus(-margins) * is_own).sum(dim=2)
    others = exists & ~is_own
    push = (functional.softplus(margins) * others).sum(dim=2) / others.sum(dim=2).clamp(min=1)
    return (pull + push)[is_matched].mean() / 2
