"""Region tree proposals: superpixels merge by features and borders, and every region is a candidate.

tree_leaves.py   superpixels, their mean features, the borders between them
merge_tree.py    the two most similar neighbours merge, until one region is left
tree_scores.py   how much each region looks like one object
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from engine.proposals.config import TreeConfig
from engine.proposals.merge_tree import MergeRule, MergeTree, grow_tree
from engine.proposals.tree_leaves import Leaves, make_leaves
from engine.proposals.tree_scores import score_regions
from engine.superpixels.graph import resize_labels
from engine.types import Reason

# An image's typical score is the mean over this many of its best regions.
_NUM_TYPICAL = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class TreeProposals:
    """Masks bool (N, H, W) of an image (H, W), best first, and their scores, float32 (N,).

    `skipped` is the reason for N = 0, otherwise None.
    """

    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    skipped: Reason | None = None


def run_tree(
    features_hwc: NDArray[np.floating] | torch.Tensor,
    image_hwc: NDArray[np.uint8],
    config: TreeConfig,
    seen_background: NDArray[np.bool_] | None = None,
) -> TreeProposals:
    """Masks of one RGB image, uint8 (H, W, 3), from patch features (h, w, C) of any floating type and length.

    For a tile, `seen_background`, bool of any size, is the background that the whole image shows there; it
    replaces the image's sides. Raises ValueError for features of another shape and for non-finite ones.
    """
    leaves = make_leaves(features_hwc, image_hwc, config, seen_background)
    tree = grow_tree(
        leaves.features, leaves.areas, leaves.borders, MergeRule(config.border_weight, config.size_power)
    )
    members, scores = rank_regions(leaves, tree, config, is_tile=seen_background is not None)
    labels = resize_labels(leaves.labels, (image_hwc.shape[0], image_hwc.shape[1]))
    return TreeProposals(
        masks=members.take(labels, axis=1),
        scores=scores,
        skipped=Reason.NO_FOREGROUND if len(members) == 0 else None,
    )


def rank_regions(
    leaves: Leaves, tree: MergeTree, config: TreeConfig, is_tile: bool = False
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """The tree's best regions, bool (N, K) over leaves, and scores float32 (N,), best first.

    Left out are background, small and large regions, and duplicates. Of equal scores, the node that is born
    first comes first.
    """
    members, lifetimes = tree.members(), tree.lifetimes()
    kept = _are_candidates(leaves, members, config, is_tile)
    members, lifetimes = members[kept], lifetimes[kept]
    scores = score_regions(leaves, members, lifetimes, config)
    chosen, scores = choose_regions(
        scores, _ious(members, leaves.areas), config.duplicate_iou, config.overlap_penalty, config.max_masks
    )
    return members[chosen], relative_scores(scores, config.relative_power)


def _are_candidates(
    leaves: Leaves, members: NDArray[np.bool_], config: TreeConfig, is_tile: bool
) -> NDArray[np.bool_]:
    """Which regions (N, K) are neither background nor too small or too large; bool (N,)."""
    inside = members.astype(np.float32)
    shares = inside @ leaves.areas / leaves.labels.size
    if is_tile:
        is_background = inside @ leaves.background > config.border_coverage * leaves.background.sum()
    else:
        height, width = leaves.labels.shape
        covered = inside @ leaves.side_pixels / (width, width, height, height)
        is_background = (covered > config.border_coverage).sum(axis=1) >= config.border_sides
    kept: NDArray[np.bool_] = (shares >= config.min_area) & (shares <= config.max_area) & ~is_background
    return kept


def _ious(members: NDArray[np.bool_], areas: NDArray[np.float64]) -> NDArray[np.float32]:
    """IoU of every pair of regions (N, K) of leaves with `areas` (K,); float32 (N, N)."""
    inside = members.astype(np.float32)
    shared = (inside * areas.astype(np.float32)) @ inside.T
    own = np.diagonal(shared)
    ious: NDArray[np.float32] = shared / (own[:, None] + own - shared)
    return ious


@njit(cache=True)  # type: ignore[untyped-decorator]
def choose_regions(
    scores: NDArray[np.float32],
    ious: NDArray[np.float32],
    duplicate_iou: float,
    overlap_penalty: float,
    max_masks: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Positions and scores of at most `max_masks` of N regions, best first; of equals the first.

    Each choice drops the regions whose IoU with it is above `duplicate_iou`, and multiplies the scores (N,)
    of the others by exp(-overlap_penalty IoU).

    Source: Bodla et al., "Soft-NMS", ICCV 2017, section 3, with another decay.
    """
    current = scores.copy()
    chosen = np.empty(min(len(scores), max_masks), np.int64)
    final = np.empty(len(chosen), np.float32)
    count = 0
    while count < len(chosen):
        best = current.argmax()
        if current[best] < 0:
            break
        chosen[count], final[count] = best, current[best]
        count += 1
        for region in range(len(current)):
            iou = ious[best, region]
            if iou > duplicate_iou or region == best:
                current[region] = -1
            elif iou > 0:
                current[region] *= np.exp(-overlap_penalty * iou)
    return chosen[:count], final[:count]


def relative_scores(scores: NDArray[np.float32], power: float) -> NDArray[np.float32]:
    """Scores (N,), falling, over a power of the geometric mean of the image's ten best.

    >>> relative_scores(np.float32([0.5, 0.5]), 1.0).tolist()
    [1.0, 1.0]
    """
    if len(scores) == 0:
        return scores
    best = np.maximum(scores[:_NUM_TYPICAL], np.finfo(np.float32).tiny)
    typical = np.exp(np.log(best).mean())
    relative: NDArray[np.float32] = (scores / typical**power).astype(np.float32)
    return relative
