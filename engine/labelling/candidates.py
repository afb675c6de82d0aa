"""Masks that may become instances: found among the patches of a crop, scored, and refined."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from engine.images.tiling import cut_mask, touches_tile_edge
from engine.labelling.config import LabellingConfig
from engine.labelling.outcomes import Labels
from engine.masks.boxes import Box
from engine.masks.components import fill_holes, keep_large_components, paired_ious, resize_masks
from engine.masks.packing import make_instances
from engine.proposals.mask_filter import score_masks
from engine.proposals.multicut import run_multicut
from engine.proposals.patches import features_tensor
from engine.proposals.promerge import run_promerge
from engine.refine import refine_images
from engine.stopwatch import stage
from engine.types import Optimality, Reason

# Pixels of masks that are refined together: the torch backend takes 20 bytes for each, the host one.
_MAX_MASK_PIXELS = 2**26


@dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """Where in its image a crop lies, and what the image's patches (h, w) show to be background."""

    box_xyxy: Box
    background: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """Masks that were found in a crop and may become its instances: bool (N, h, w) over its patches, or, once
    refined, (N, H, W) at the encoder's size.

    `scores` (N,) are theirs; `resized_hwc`, `size` and `tile` are as in `label_features`; `device` is where
    the features are, and where masks are refined.
    """

    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    resized_hwc: NDArray[np.uint8]
    size: tuple[int, int]
    tile: Tile | None
    device: str
    optimality: Optimality | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Proposals:
    """Masks over patches, bool (N, h, w), before scores and refinement; `skipped` says why N is 0."""

    masks: NDArray[np.bool_]
    skipped: Reason | None
    optimality: Optimality | None = None


def find_candidates(
    features_hwc: NDArray[np.floating] | torch.Tensor,
    resized_hwc: NDArray[np.uint8],
    size: tuple[int, int],
    config: LabellingConfig,
    tile: Tile | None = None,
) -> Candidates | Labels:
    """The first part of `label_features`, up to refinement; labels where there is nothing to refine."""
    features = features_tensor(features_hwc)
    if not bool(torch.isfinite(features).all()):
        return Labels(found=Reason.NON_FINITE)
    with stage("propose"):
        proposed = propose_masks(features, size, config, tile)
    if proposed.skipped is not None:
        return Labels(found=proposed.skipped, optimality=proposed.optimality)
    masks = proposed.masks
    if tile is not None:
        masks = masks[np.count_nonzero(masks, axis=(1, 2)) >= config.tiling.tile_min_patches]
    with stage("score"):
        scores = score_masks(features, masks, config.mask_filter)
    masks, scores = drop_truncated_masks(masks, scores, size, tile)
    return Candidates(
        masks=masks,
        scores=scores,
        resized_hwc=resized_hwc,
        size=size,
        tile=tile,
        device=str(features.device),
        optimality=proposed.optimality,
    )


def group_candidates(found: Sequence[Candidates]) -> Iterator[list[Candidates]]:
    """Candidates of crops of one size, in order, by groups whose refinement fits into a gigabyte or two,
    where one crop's does."""
    group: list[Candidates] = []
    for candidates in found:
        # Every image of a group takes the room of the one with most masks.
        most = max(len(other.masks) for other in (*group, candidates))
        num_pixels = math.prod(candidates.resized_hwc.shape[:2])
        if group and (len(group) + 1) * most * num_pixels > _MAX_MASK_PIXELS:
            yield group
            group = []
        group.append(candidates)
    if group:
        yield group


def refine_candidates(found: Sequence[Candidates], config: LabellingConfig) -> list[Candidates]:
    """Bring the masks of several crops, all of one size and on one device, to the encoder's size, and to the
    images' edges where `config` asks for it; a mask that is no longer what it was goes."""
    coarse = [
        resize_masks(item.masks, (item.resized_hwc.shape[0], item.resized_hwc.shape[1])) for item in found
    ]
    if not config.uses_crf or not found:
        return [replace(item, masks=masks) for item, masks in zip(found, coarse, strict=True)]
    results = []
    with stage("refine"):
        images = [item.resized_hwc for item in found]
        refined = refine_images(images, coarse, config.crf, device=found[0].device)
        for item, before, after in zip(found, coarse, refined, strict=True):
            masks, scores = postprocess_masks(before, after, item.scores, config)
            masks, scores = drop_truncated_masks(masks, scores, item.size, item.tile)
            results.append(replace(item, masks=masks, scores=scores))
    return results


def make_labels(candidates: Candidates, config: LabellingConfig) -> Labels:
    """The last part of `label_features`: instances of candidates that need no more refinement."""
    box_xyxy = candidates.tile.box_xyxy if candidates.tile else None
    with stage("resize masks, run lengths"):
        instances = make_instances(
            candidates.masks, candidates.scores, candidates.size, config.method, box_xyxy
        )
    found = instances if len(instances) > 0 else Reason.REFINED_AWAY
    return Labels(found=found, optimality=candidates.optimality)


def propose_masks(
    features_hwc: NDArray[np.floating] | torch.Tensor,
    size: tuple[int, int],
    config: LabellingConfig,
    tile: Tile | None = None,
) -> Proposals:
    """Masks over the patches of features (h, w, C) of an image of `size`, or of its tile, by the method."""
    seen_background = None
    if tile is not None:
        grid = (features_hwc.shape[0], features_hwc.shape[1])
        seen_background = cut_mask(tile.background, tile.box_xyxy, size, grid)
    if config.method == "multicut":
        cut = run_multicut(features_hwc, config.multicut, seen_background=seen_background)
        return Proposals(masks=cut.masks, skipped=cut.skipped, optimality=cut.optimality)
    merged = run_promerge(features_hwc, config.promerge, seen_background)
    return Proposals(masks=merged.masks, skipped=merged.skipped)


def drop_truncated_masks(
    masks: NDArray[np.bool_], scores: NDArray[np.float32], size: tuple[int, int], tile: Tile | None
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """The masks (N, h, w) of a tile that its inner edges do not cut, with their scores (N,)."""
    if tile is None:
        return masks, scores
    kept = ~touches_tile_edge(masks, tile.box_xyxy, size)
    return masks[kept], scores[kept]


def postprocess_masks(
    coarse: NDArray[np.bool_],
    refined: NDArray[np.bool_],
    scores: NDArray[np.float32],
    config: LabellingConfig,
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """What is left of masks (N, H, W) behind the CRF: their large components, holes filled, without those
    that are no longer what they were (METHODS 2.7); with the scores (N,) of those that stay."""
    settled = fill_holes(keep_large_components(refined, config.component_fraction))
    kept = paired_ious(coarse, settled) >= config.min_refined_iou
    return settled[kept], scores[kept]
