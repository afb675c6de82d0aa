"""Scores of the region tree's nodes: how much a region looks like one object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.proposals.config import TreeConfig
from engine.proposals.tree_leaves import Leaves

# Cues are raised to this before they are multiplied, so that no single one decides.
_LEAST_CUE = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class Cues:
    """What speaks for each of N regions; float32 (N,), higher is better.

    `isolation` 1 - cosine of the region's mean feature with the background's; `contrast` R(M) over leaves
    (see engine.proposals.mask_filter); `coherence` length of the mean unit feature; `lifetime` span of
    dissimilarity over which the region exists; `area` share of the image; `compactness` 4 sqrt(area) /
    perimeter, 1 for a square; `freedom` 1 / (1 + number of image sides that the region touches); `outline`
    mean strength of the border around the region, without the image's sides; `detail` mean strength of the
    borders inside it.
    """

    isolation: NDArray[np.float32]
    contrast: NDArray[np.float32]
    coherence: NDArray[np.float32]
    lifetime: NDArray[np.float32]
    area: NDArray[np.float32]
    compactness: NDArray[np.float32]
    freedom: NDArray[np.float32]
    outline: NDArray[np.float32]
    detail: NDArray[np.float32]


def score_regions(
    leaves: Leaves, members: NDArray[np.bool_], lifetimes: NDArray[np.float64], config: TreeConfig
) -> NDArray[np.float32]:
    """Scores float32 (N,), above 0, of regions of leaves, bool (N, K): the product of powers of the cues.

    The powers are the weights in `config`; every cue counts as at least 0.001.
    """
    cues = measure_cues(leaves, members, lifetimes)
    scores = np.ones(len(members), np.float32)
    for name, weight in config.cue_weights.items():
        scores *= np.maximum(getattr(cues, name), np.float32(_LEAST_CUE)) ** np.float32(weight)
    return np.maximum(scores, np.finfo(np.float32).tiny)


def measure_cues(leaves: Leaves, members: NDArray[np.bool_], lifetimes: NDArray[np.float64]) -> Cues:
    """Cues of regions of leaves, bool (N, K), each with at least one leaf; `lifetimes` is (N,)."""
    inside = members.astype(np.float32)
    areas = inside @ leaves.areas.astype(np.float32)
    lengths, strengths = (matrix.astype(np.float32) for matrix in leaves.borders)
    to_leaves = inside @ lengths
    isolation, contrast, coherence = _feature_cues(leaves, inside, (to_leaves > 0) & ~members)
    inner_length = (to_leaves * inside).sum(axis=1)
    outer_length = to_leaves.sum(axis=1) - inner_length
    to_leaves = inside @ strengths
    inner_strength = (to_leaves * inside).sum(axis=1)
    outer_strength = to_leaves.sum(axis=1) - inner_strength
    side_pixels = inside @ leaves.side_pixels.astype(np.float32)
    return Cues(
        isolation=isolation,
        contrast=contrast,
        coherence=coherence,
        lifetime=lifetimes.astype(np.float32),
        area=areas / np.float32(leaves.labels.size),
        compactness=4 * np.sqrt(areas) / np.maximum(outer_length + side_pixels.sum(axis=1), 1),
        freedom=1 / (1 + (side_pixels > 0).sum(axis=1)).astype(np.float32),
        outline=outer_strength / np.maximum(outer_length, 1),
        detail=inner_strength / np.maximum(inner_length, 1),
    )


def _feature_cues(
    leaves: Leaves, inside: NDArray[np.float32], ring: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Isolation, contrast and coherence (N,) of regions (N, K) with neighbouring leaves `ring` (N, K).

    Without background, isolation is 1; without neighbours, their mean cosine is 0.
    """
    weights = leaves.areas.astype(np.float32)
    weighted = inside * weights
    areas = weighted.sum(axis=1)
    sums = (weighted @ leaves.features).astype(np.float32)
    directions = _unit(sums)
    cosines = directions @ _unit(leaves.features).T
    around = ring * weights
    ring_mean = (around * cosines).sum(axis=1) / np.maximum(around.sum(axis=1), 1)
    contrast = (weighted * cosines).sum(axis=1) / areas - ring_mean
    background = leaves.background.astype(np.float32) @ leaves.features
    isolation = 1 - directions @ _unit(background[None])[0]
    coherence: NDArray[np.float32] = np.linalg.norm(sums, axis=1) / areas
    return isolation, contrast, coherence


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows (N, C) of length 1; zero rows stay zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit
