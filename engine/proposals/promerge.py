"""ProMerge: prompt a grid of seeds, prune with a voted background, merge what is left.

Li and Shin, "ProMerge: Prompt and Merge for Unsupervised Instance Segmentation", ECCV 2024
(arXiv 2409.18961). Dense products run where the features are; the two greedy loops, whose every step
depends on the last, run on the host over masks as whole integers, one bit a patch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engine.masks.components import label_components, mask_of_component
from engine.proposals.config import ProMergeConfig
from engine.proposals.patches import cover_background, normalised_features, touched_sides
from engine.types import Reason

# Pool masks that are bool arrays at one time, 3.7 MB at 60 x 60 patches.
_POOL_BATCH = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class ProMergeResult:
    """`masks` and `background` are bool (N, h, w) and (h, w) over patches; `skipped` says why N is 0."""

    masks: NDArray[np.bool_]
    background: NDArray[np.bool_]
    skipped: Reason | None = None


def promerge_masks(
    features_hwc: NDArray[np.floating] | torch.Tensor, config: ProMergeConfig
) -> NDArray[np.bool_]:
    """Instance masks over patches, bool (N, h, w), largest first, ties by first patch; N may be 0.

    `features_hwc` holds one feature a patch, (h, w, C), of any floating type and on any device; it is
    normalised here. Raises ValueError for another shape or values that are not finite.
    Source: METHODS 2.1-2.6, arXiv 2409.18961 section 3.
    """
    return run_promerge(features_hwc, config).masks


def run_promerge(
    features_hwc: NDArray[np.floating] | torch.Tensor,
    config: ProMergeConfig,
    seen_background: NDArray[np.bool_] | None = None,
) -> ProMergeResult:
    """`promerge_masks` with the voted background and the reason of an empty result.

    `seen_background` (h, w) is for the features of a tile: where the whole image shows background. It takes
    the place of the border, which in a tile says nothing.
    """
    features = normalised_features(features_hwc)
    size = (features_hwc.shape[0], features_hwc.shape[1])
    masks, seeds = _prompt(features, size, config)
    is_candidate = _are_candidates(masks, seen_background, config)
    background = _vote(masks[is_candidate], config)
    skipped = _why_skipped(is_candidate, background, config)
    if skipped is None:
        pool = _split(masks[~is_candidate], seeds[~is_candidate], config)
        accepted = _cascade_filter(pool, background, features, config)
        if accepted:
            merged = _by_area(_as_masks(_merge(accepted, features, config), size))
            return ProMergeResult(masks=merged, background=background)
        skipped = Reason.NO_FOREGROUND
    return ProMergeResult(masks=np.zeros((0, *size), bool), background=background, skipped=skipped)


def find_background(
    features_hwc: NDArray[np.floating] | torch.Tensor, config: ProMergeConfig
) -> NDArray[np.bool_] | None:
    """The voted background of an image (METHODS 2.1, 2.2, 2.4), bool (h, w); None where it is too small."""
    features = normalised_features(features_hwc)
    masks, _ = _prompt(features, (features_hwc.shape[0], features_hwc.shape[1]), config)
    is_candidate = _are_candidates(masks, None, config)
    background = _vote(masks[is_candidate], config)
    return background if _why_skipped(is_candidate, background, config) is None else None


def _are_candidates(
    masks: NDArray[np.bool_], seen_background: NDArray[np.bool_] | None, config: ProMergeConfig
) -> NDArray[np.bool_]:
    """Which seed masks (N, h, w) are background candidates (2.2): (N,).

    In a tile those are that cover more than `border_coverage` of the background seen there.
    """
    if seen_background is None:
        return touched_sides(masks, config.border_coverage) >= config.border_sides
    return cover_background(masks, seen_background, config.border_coverage)


def _vote(candidates: NDArray[np.bool_], config: ProMergeConfig) -> NDArray[np.bool_]:
    """Background (h, w) by the vote of the candidates (N, h, w) (2.4)."""
    background: NDArray[np.bool_] = candidates.sum(axis=0) > config.vote_fraction * len(candidates)
    return background


def _why_skipped(
    is_candidate: NDArray[np.bool_], background: NDArray[np.bool_], config: ProMergeConfig
) -> Reason | None:
    """Why an image has no masks (2.4), if so: no mask is a candidate, or the background is too small."""
    if not is_candidate.any():
        return Reason.NO_BACKGROUND
    if np.count_nonzero(background) < config.min_background * background.size:
        return Reason.SMALL_BACKGROUND
    return None


def _prompt(
    features: torch.Tensor, size: tuple[int, int], config: ProMergeConfig
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Seed masks, bool (K, h, w), and the patches of their seeds (2.1)."""
    height, width = size
    rows, columns = np.arange(0, height, config.stride), np.arange(0, width, config.stride)
    seeds = (rows[:, None] * width + columns[None, :]).ravel()
    affinity = features[torch.as_tensor(seeds, device=features.device)] @ features.T
    masks = (affinity > config.tau_b).cpu().numpy().reshape(-1, height, width)
    return masks, seeds


@dataclass(frozen=True, kw_only=True, eq=False)
class _ComponentPool:
    """Masks as numbers in label maps: a noisy image has 100,000 of them, too many for a bool array.

    `labels` is int32 (M, h, w), `areas` int64 by label, `kept` the labels in the pool by rising area and
    `owners` the index of each kept label's map.
    """

    labels: NDArray[np.int32]
    areas: NDArray[np.int64]
    kept: NDArray[np.int64]
    owners: NDArray[np.int64]

    def masks(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The pool's masks at these positions, bool (K, h, w)."""
        masks: NDArray[np.bool_] = self.labels[self.owners[positions]] == self.kept[positions][:, None, None]
        return masks


def _split(masks: NDArray[np.bool_], seeds: NDArray[np.int64], config: ProMergeConfig) -> _ComponentPool:
    """Components of each mask that are not small beside the seed's own, as masks of their own (2.3)."""
    labels, count = label_components(masks)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    owners = mask_of_component(labels, count)
    flat = labels.reshape(len(masks), masks.shape[1] * masks.shape[2])
    seed_labels = flat[np.arange(len(masks)), seeds]
    seed_areas = np.where(seed_labels > 0, areas[seed_labels], 0)
    all_labels = np.arange(1, count + 1)
    kept = all_labels[areas[1:] >= config.component_fraction * seed_areas[owners[1:]]]
    kept = kept[np.argsort(areas[kept], kind="stable")]
    return _ComponentPool(labels=labels, areas=areas, kept=kept, owners=owners[kept])


def _cascade_filter(
    pool: _ComponentPool, background: NDArray[np.bool_], features: torch.Tensor, config: ProMergeConfig
) -> list[int]:
    """Masks of the pool that stand out from the background, smallest first, as bits (2.5)."""
    positions = np.arange(len(pool.kept))
    if config.filter != "ioa":
        similarity = _background_similarity(pool, background, features)
        positions = positions[similarity < config.max_background_similarity]
    (background_bits,) = _as_bits(background[None])
    covered, accepted = 0, []
    for start in range(0, len(positions), _POOL_BATCH):
        for bits in _as_bits(pool.masks(positions[start : start + _POOL_BATCH])):
            new = bits & ~covered
            if new == 0:
                continue
            ioa = (new & background_bits).bit_count() / new.bit_count()
            if config.filter == "feature" or ioa < config.max_background_ioa:
                covered |= bits
                accepted.append(bits)
    return accepted


def _background_similarity(
    pool: _ComponentPool, background: NDArray[np.bool_], features: torch.Tensor
) -> NDArray[np.float64]:
    """Dot product of each pool mask's mean feature with the background's mean feature, float64 (N,)."""
    # mean(a) . mean(b) is the mean over a of x . mean(b), so no mask's mean feature has to be formed.
    members = torch.as_tensor(background.ravel(), device=features.device)
    to_background = (features @ features[members].mean(dim=0)).cpu().numpy()
    weights = np.broadcast_to(to_background, (len(pool.labels), len(to_background)))
    sums = np.bincount(pool.labels.ravel(), weights=weights.ravel(), minlength=len(pool.areas))
    similarity: NDArray[np.float64] = sums[pool.kept] / pool.areas[pool.kept]
    return similarity


def _merge(accepted: Sequence[int], features: torch.Tensor, config: ProMergeConfig) -> list[int]:
    """Clusters of accepted masks that overlap enough, or overlap and resemble each other (2.6)."""
    clusters: list[_PatchSet] = []
    for bits in sorted(accepted, key=int.bit_count, reverse=True):
        area = bits.bit_count()
        mask = _PatchSet(bits)
        joined: list[_PatchSet] = []
        apart: list[_PatchSet] = []
        for cluster in clusters:
            ioa = (bits & cluster.bits).bit_count() / area
            joins = ioa > config.merge_ioa or (
                ioa > config.merge_min_ioa
                and float(mask.mean_feature(features) @ cluster.mean_feature(features))
                >= config.merge_similarity
            )
            (joined if joins else apart).append(cluster)
        clusters = [*apart, functools.reduce(_PatchSet.union, joined, mask)]
    return [cluster.bits for cluster in clusters]


class _PatchSet:
    """A set of patches that remembers its mean feature once someone has asked for it."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self._mean_feature: torch.Tensor | None = None

    def union(self, other: _PatchSet) -> _PatchSet:
        """The union; `other` itself, with what it remembers, where it holds the whole of this set."""
        return other if self.bits & ~other.bits == 0 else _PatchSet(self.bits | other.bits)

    def mean_feature(self, features: torch.Tensor) -> torch.Tensor:
        if self._mean_feature is None:
            members = _as_masks([self.bits], (1, len(features))).ravel()
            self._mean_feature = features[torch.as_tensor(members, device=features.device)].mean(dim=0)
        return self._mean_feature


def _by_area(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Masks (N, h, w) by falling area, then first patch in reading order."""
    flat = masks.reshape(len(masks), -1)
    return masks[np.lexsort((flat.argmax(axis=1), -flat.sum(axis=1)))]


def _as_bits(masks: NDArray[np.bool_]) -> list[int]:
    """Each mask (N, h, w) as one integer, a bit a patch: set operations on 3,600 patches take 0.1 µs."""
    packed = np.packbits(masks.reshape(len(masks), -1), axis=1)
    return [int.from_bytes(row.tobytes(), "big") for row in packed]


def _as_masks(bits: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The masks (N, h, w) that `_as_bits` was given."""
    height, width = size
    num_bytes = -(-height * width // 8)
    rows = [np.frombuffer(value.to_bytes(num_bytes, "big"), np.uint8) for value in bits]
    flat = np.unpackbits(np.stack(rows), axis=1, count=height * width)
    return flat.reshape(-1, height, width).astype(bool)
