"""ProMerge: masks of a grid of seeds, pruned by a voted background and merged (docs/methods.md, 2).

Source: Li and Shin, "ProMerge: Prompt and Merge for Unsupervised Instance Segmentation", ECCV 2024 (arXiv
2409.18961). Matrix products run on the device of the features. The two greedy loops are sequential and run on
the host, over masks that are integers with one bit per patch.
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

# Pool masks that are expanded to bool arrays at a time, 3.7 MB at 60 x 60 patches.
_POOL_BATCH = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class ProMergeResult:
    """Masks of one image, bool (N, h, w) over patches, largest first, ties by first patch.

    `background` is the voted background, bool (h, w); `skipped` is why N is 0.
    """

    masks: NDArray[np.bool_]
    background: NDArray[np.bool_]
    skipped: Reason | None = None


def promerge_masks(
    features_hwc: NDArray[np.floating] | torch.Tensor, config: ProMergeConfig
) -> NDArray[np.bool_]:
    """Instance masks of one image over its patches, bool (N, h, w), largest first, ties by first patch.

    For use outside the labelling path; `run_promerge` also returns the background and the reason for N = 0.
    """
    return run_promerge(features_hwc, config).masks


def run_promerge(
    features_hwc: NDArray[np.floating] | torch.Tensor,
    config: ProMergeConfig,
    seen_background: NDArray[np.bool_] | None = None,
) -> ProMergeResult:
    """Instance masks and background of one image.

    `features_hwc` holds one feature per patch, (h, w, C), of any floating dtype and length, on any device.
    For a tile, `seen_background` (h, w) is the background of the whole image and replaces the border rule.
    Raises ValueError for another shape or values that are not finite.
    Source: docs/methods.md, 2.1-2.6; arXiv 2409.18961, section 3.
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
    """The voted background of an image, bool (h, w), or None if there is none or it is too small.

    Source: docs/methods.md, 2.1, 2.2 and 2.4.
    """
    features = normalised_features(features_hwc)
    masks, _ = _prompt(features, (features_hwc.shape[0], features_hwc.shape[1]), config)
    is_candidate = _are_candidates(masks, None, config)
    background = _vote(masks[is_candidate], config)
    return background if _why_skipped(is_candidate, background, config) is None else None


def _are_candidates(
    masks: NDArray[np.bool_], seen_background: NDArray[np.bool_] | None, config: ProMergeConfig
) -> NDArray[np.bool_]:
    """Whether seed masks (N, h, w) are background candidates (2.2), bool (N,).

    In a tile, candidates are the masks that cover more than `border_coverage` of `seen_background`.
    """
    if seen_background is None:
        return touched_sides(masks, config.border_coverage) >= config.border_sides
    return cover_background(masks, seen_background, config.border_coverage)


def _vote(candidates: NDArray[np.bool_], config: ProMergeConfig) -> NDArray[np.bool_]:
    """The patches (h, w) in more than `vote_fraction` of the candidates (N, h, w) (2.4)."""
    background: NDArray[np.bool_] = candidates.sum(axis=0) > config.vote_fraction * len(candidates)
    return background


def _why_skipped(
    is_candidate: NDArray[np.bool_], background: NDArray[np.bool_], config: ProMergeConfig
) -> Reason | None:
    """The reason for skipping an image (2.4): no background candidate, or a small background; or None."""
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
    """Masks as labels of label maps, as a noisy image has 100,000 of them, too many for a bool array.

    `labels` is int32 (M, h, w), `areas` int64 by label, `kept` the labels in the pool in ascending order of
    area and `map_of_kept` the label map of each of these.
    """

    labels: NDArray[np.int32]
    areas: NDArray[np.int64]
    kept: NDArray[np.int64]
    map_of_kept: NDArray[np.int64]

    def masks(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The pool's masks at these positions, bool (K, h, w)."""
        maps = self.labels[self.map_of_kept[positions]]
        masks: NDArray[np.bool_] = maps == self.kept[positions][:, None, None]
        return masks


def _split(masks: NDArray[np.bool_], seeds: NDArray[np.int64], config: ProMergeConfig) -> _ComponentPool:
    """The pool of the masks' components that are large enough relative to the seed's component (2.3)."""
    labels, count = label_components(masks)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    map_of_label = mask_of_component(labels, count)
    flat = labels.reshape(len(masks), masks.shape[1] * masks.shape[2])
    seed_labels = flat[np.arange(len(masks)), seeds]
    seed_areas = np.where(seed_labels > 0, areas[seed_labels], 0)
    all_labels = np.arange(1, count + 1)
    kept = all_labels[areas[1:] >= config.component_fraction * seed_areas[map_of_label[1:]]]
    kept = kept[np.argsort(areas[kept], kind="stable")]
    return _ComponentPool(labels=labels, areas=areas, kept=kept, map_of_kept=map_of_label[kept])


def _cascade_filter(
    pool: _ComponentPool, background: NDArray[np.bool_], features: torch.Tensor, config: ProMergeConfig
) -> list[int]:
    """Masks of the pool that pass the background tests, smallest first, as bits (2.5)."""
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
    # mean(a) . mean(b) is the mean of x . mean(b) over a, so masks' mean features need not be computed.
    members = torch.as_tensor(background.ravel(), device=features.device)
    to_background = (features @ features[members].mean(dim=0)).cpu().numpy()
    weights = np.broadcast_to(to_background, (len(pool.labels), len(to_background)))
    sums = np.bincount(pool.labels.ravel(), weights=weights.ravel(), minlength=len(pool.areas))
    similarity: NDArray[np.float64] = sums[pool.kept] / pool.areas[pool.kept]
    return similarity


def _merge(accepted: Sequence[int], features: torch.Tensor, config: ProMergeConfig) -> list[int]:
    """Clusters of accepted masks that overlap much, or overlap less and have similar features (2.6)."""
    clusters: list[_PatchSet] = []
    for bits in sorted(accepted, key=int.bit_count, reverse=True):
        area = bits.bit_count()
        mask = _PatchSet(bits)
        joined: list[_PatchSet] = []
        separate: list[_PatchSet] = []
        for cluster in clusters:
            ioa = (bits & cluster.bits).bit_count() / area
            joins = ioa > config.merge_ioa or (
                ioa > config.merge_min_ioa
                and float(mask.mean_feature(features) @ cluster.mean_feature(features))
                >= config.merge_similarity
            )
            (joined if joins else separate).append(cluster)
        clusters = [*separate, functools.reduce(_PatchSet.union, joined, mask)]
    return [cluster.bits for cluster in clusters]


class _PatchSet:
    """A set of patches that caches its mean feature."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self._mean_feature: torch.Tensor | None = None

    def union(self, other: _PatchSet) -> _PatchSet:
        """The union of both sets: `other` itself, with its cache, if it contains this set."""
        return other if self.bits & ~other.bits == 0 else _PatchSet(self.bits | other.bits)

    def mean_feature(self, features: torch.Tensor) -> torch.Tensor:
        if self._mean_feature is None:
            members = _as_masks([self.bits], (1, len(features))).ravel()
            self._mean_feature = features[torch.as_tensor(members, device=features.device)].mean(dim=0)
        return self._mean_feature


def _by_area(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Masks (N, h, w) in descending order of area, then by first patch in reading order."""
    flat = masks.reshape(len(masks), -1)
    return masks[np.lexsort((flat.argmax(axis=1), -flat.sum(axis=1)))]


def _as_bits(masks: NDArray[np.bool_]) -> list[int]:
    """Masks (N, h, w) as integers with one bit per patch: set operations on 3,600 patches take 0.1 µs."""
    packed = np.packbits(masks.reshape(len(masks), -1), axis=1)
    return [int.from_bytes(row.tobytes(), "big") for row in packed]


def _as_masks(bits: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Inverse of `_as_bits`: masks (N, h, w)."""
    height, width = size
    num_bytes = -(-height * width // 8)
    rows = [np.frombuffer(value.to_bytes(num_bytes, "big"), np.uint8) for value in bits]
    flat = np.unpackbits(np.stack(rows), axis=1, count=height * width)
    return flat.reshape(-1, height, width).astype(bool)
