"""Candidates: the masks of a crop on their way from proposals to instances, scored and then refined."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from engine.images.crops import Crop
from engine.images.tiling import cut_mask, touches_tile_edge
from engine.labelling.config import LabellingConfig
from engine.labelling.methods import Proposals, propose_masks
from engine.labelling.outcomes import Labels
from engine.masks.components import fill_holes, keep_large_components, paired_ious, resize_masks
from engine.masks.packing import make_instances
from engine.proposals.mask_filter import score_masks
from engine.proposals.patches import features_tensor
from engine.refine import CrfConfig
from engine.stopwatch import stage
from engine.types import Optimality, Reason

# Pixels of masks refined together: at 20 bytes each on a GPU, which is more than on the host, 1.3 GB.
_MAX_MASK_PIXELS = 2**26


Propose = Callable[[torch.Tensor, NDArray[np.uint8], LabellingConfig, NDArray[np.bool_] | None], Proposals]
"""A method that proposes masks; see `engine.labelling.methods.propose_masks`."""


class Refine(Protocol):
    """A CRF over the masks of several images of one size; `engine.refine.refine_images` is one."""

    def __call__(
        self,
        images: Sequence[NDArray[np.uint8]],
        masks: Sequence[NDArray[np.bool_]],
        config: CrfConfig,
        *,
        device: str,
    ) -> list[NDArray[np.bool_]]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """Scored masks of a crop: bool (N, h, w) over its patches or, once refined, (N, H, W) over the pixels of
    the resized crop.

    `scores` are float32 (N,); `device` is where the features are, and where masks are refined.
    """

    crop: Crop
    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    device: str
    optimality: Optimality | None = None


def find_candidates(
    crop: Crop,
    features_hwc: NDArray[np.floating] | torch.Tensor,
    background: NDArray[np.bool_] | None,
    config: LabellingConfig,
    propose: Propose = propose_masks,
) -> Candidates | Labels:
    """Propose masks from a crop's features (h, w, C) and score them; labels if there is nothing to refine.

    `background`, bool (h', w') over the patches of the whole image, is given for a tile. Of a tile, masks of
    few patches and masks cut by its inner edges are left out.
    """
    features = features_tensor(features_hwc)
    if not bool(torch.isfinite(features).all()):
        return Labels(reason=Reason.NON_FINITE)
    grid = (features.shape[0], features.shape[1])
    with stage("propose"):
        seen = cut_mask(background, crop.box_xyxy, crop.size, grid) if background is not None else None
        proposals = propose(features, crop.resized_hwc, config, seen)
    if proposals.skipped is not None:
        return Labels(reason=proposals.skipped, optimality=proposals.optimality)
    if not crop.is_whole:
        proposals = proposals.keep(proposals.areas_in_patches(grid) >= config.tiling.tile_min_patches)
    scores = proposals.scores
    if scores is None:
        with stage("score"):
            scores = score_masks(features, proposals.masks, config.mask_filter)
    candidates = Candidates(
        crop=crop,
        masks=proposals.masks,
        scores=scores,
        device=str(features.device),
        optimality=proposals.optimality,
    )
    return drop_truncated(candidates)


def group_candidates(
    found: Sequence[Candidates], max_mask_pixels: int = _MAX_MASK_PIXELS
) -> Iterator[list[Candidates]]:
    """Split candidates of crops of one size, in order, into groups whose masks are refined together.

    A group has at most `max_mask_pixels` pixels of masks, unless a single crop has more.
    """
    group: list[Candidates] = []
    for candidates in found:
        # Every image of a group is padded to the number of masks of the one with most.
        most = max(len(other.masks) for other in (*group, candidates))
        num_pixels = math.prod(candidates.crop.resized_hwc.shape[:2])
        if group and (len(group) + 1) * most * num_pixels > max_mask_pixels:
            yield group
            group = []
        group.append(candidates)
    if group:
        yield group


def refine_candidates(
    found: Sequence[Candidates], config: LabellingConfig, refine: Refine
) -> list[Candidates]:
    """Bring the masks of crops of one size, all on one device, to that size; refine them if `config` says so.

    A mask that the CRF changes too much is dropped.
    """
    if not config.uses_crf or not found:
        # Masks over patches are resized twice, so that they agree with refined ones but for the refinement.
        return [
            item
            if item.masks.shape[1:] == _resized_size(item.crop)
            else replace(item, masks=resize_masks(item.masks, _resized_size(item.crop)))
            for item in found
        ]
    coarse = [resize_masks(item.masks, _resized_size(item.crop)) for item in found]
    results = []
    with stage("refine"):
        images = [item.crop.resized_hwc for item in found]
        refined = refine(images, coarse, config.crf, device=found[0].device)
        for item, before, after in zip(found, coarse, refined, strict=True):
            masks, scores = postprocess_masks(before, after, item.scores, config)
            results.append(drop_truncated(replace(item, masks=masks, scores=scores)))
    return results


def make_labels(candidates: Candidates, config: LabellingConfig) -> Labels:
    """Pack refined candidates as instances, in the image's pixels."""
    crop = candidates.crop
    with stage("resize masks, run lengths"):
        instances = make_instances(
            candidates.masks, candidates.scores, crop.size, config.method, crop.box_xyxy
        )
    if len(instances) == 0:
        return Labels(reason=Reason.REFINED_AWAY, optimality=candidates.optimality)
    return Labels(instances=instances, optimality=candidates.optimality)


def drop_truncated(candidates: Candidates) -> Candidates:
    """The candidates that the crop's inner edges do not cut; those of a whole image are all kept."""
    crop = candidates.crop
    if crop.is_whole:
        return candidates
    kept = ~touches_tile_edge(candidates.masks, crop.box_xyxy, crop.size)
    return replace(candidates, masks=candidates.masks[kept], scores=candidates.scores[kept])


def postprocess_masks(
    coarse: NDArray[np.bool_],
    refined: NDArray[np.bool_],
    scores: NDArray[np.float32],
    config: LabellingConfig,
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Keep large components of refined masks (N, H, W), fill holes, and drop masks that changed too much.

    Returns the masks that are kept and their scores. Source: docs/methods.md, 2.7.
    """
    processed = fill_holes(keep_large_components(refined, config.component_fraction))
    kept = paired_ious(coarse, processed) >= config.min_refined_iou
    return processed[kept], scores[kept]


def _resized_size(crop: Crop) -> tuple[int, int]:
    return crop.resized_hwc.shape[0], crop.resized_hwc.shape[1]
