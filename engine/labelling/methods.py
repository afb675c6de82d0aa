"""Proposals of masks in a crop, and the one dispatch to the method that makes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from engine.labelling.config import LabellingConfig
from engine.proposals.multicut import run_multicut
from engine.proposals.promerge import run_promerge
from engine.proposals.tree import run_tree
from engine.types import Optimality, Reason


@dataclass(frozen=True, kw_only=True, eq=False)
class Proposals:
    """Masks that a method proposes in a crop, before refinement.

    `masks` are bool (N, h, w) over the crop's patches, or (N, H, W) over the pixels of the resized crop, as
    `resolution` says. `scores`, float32 (N,), are None if the method has none of its own: then R(M) is
    measured, which is defined on patches. `skipped` is the reason if there are no masks.
    """

    masks: NDArray[np.bool_]
    resolution: Literal["patches", "pixels"] = "patches"
    scores: NDArray[np.float32] | None = None
    skipped: Reason | None = None
    optimality: Optimality | None = None

    def __post_init__(self) -> None:
        if self.scores is None and self.resolution == "pixels":
            raise ValueError("masks over pixels need scores of their own: R(M) is defined on patches")
        if self.scores is not None and len(self.scores) != len(self.masks):
            raise ValueError(f"{len(self.masks)} masks need as many scores, got {len(self.scores)}")

    def areas_in_patches(self, grid: tuple[int, int]) -> NDArray[np.float64]:
        """Areas (N,) of the masks in patches of a crop of `grid` = (height, width) patches.

        >>> Proposals(masks=np.ones((1, 4, 6), bool), resolution="pixels", scores=np.ones(1, np.float32)
        ...     ).areas_in_patches((2, 3))
        array([6.])
        """
        cells_per_patch = self.masks.shape[1] * self.masks.shape[2] / (grid[0] * grid[1])
        areas: NDArray[np.float64] = np.count_nonzero(self.masks, axis=(1, 2)) / cells_per_patch
        return areas

    def keep(self, is_kept: NDArray[np.bool_]) -> Proposals:
        """The proposals where `is_kept`, bool (N,), is true."""
        scores = self.scores[is_kept] if self.scores is not None else None
        return replace(self, masks=self.masks[is_kept], scores=scores)


def propose_masks(
    features_hwc: NDArray[np.floating] | torch.Tensor,
    resized_hwc: NDArray[np.uint8],
    config: LabellingConfig,
    seen_background: NDArray[np.bool_] | None = None,
) -> Proposals:
    """Masks that `config.method` proposes from features (h, w, C) of `resized_hwc`, uint8 RGB (H, W, 3).

    `seen_background`, bool (h, w), is given for a tile: the part of it that is background of the whole image.
    """
    if config.method == "tree":
        grown = run_tree(features_hwc, resized_hwc, config.tree, seen_background)
        return Proposals(masks=grown.masks, resolution="pixels", scores=grown.scores, skipped=grown.skipped)
    if config.method == "promerge":
        merged = run_promerge(features_hwc, config.promerge, seen_background)
        return Proposals(masks=merged.masks, skipped=merged.skipped)
    if config.method == "multicut":
        cut = run_multicut(features_hwc, config.multicut, seen_background=seen_background)
        return Proposals(masks=cut.masks, skipped=cut.skipped, optimality=cut.optimality)
    raise ValueError(f"method {config.method!r} proposes no masks among patches")
