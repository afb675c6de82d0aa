"""The region tree: the two most similar neighbours merge until one region is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from engine.proposals.tree_leaves import Borders

_NONE = -1


class MergeRule(NamedTuple):
    """When two neighbouring regions merge.

    dissimilarity = (1 - c + border_weight e) (h / m)^size_power, where c is the cosine of the mean features,
    e the mean strength of the common border, h half the harmonic mean of the two areas and m the mean area of
    the leaves.
    """

    border_weight: float
    size_power: float


@dataclass(frozen=True, kw_only=True, eq=False)
class MergeTree:
    """A binary tree over K leaves: nodes 0..K-1 are the leaves, node K + s is born in merge s.

    `merges` is int64 (K - 1, 2), the two nodes that merge, and `heights` float64 (K - 1,), their
    dissimilarities, raised to the highest so far.
    """

    merges: NDArray[np.int64]
    heights: NDArray[np.float64]

    @property
    def num_leaves(self) -> int:
        """Number of leaves, K."""
        return len(self.merges) + 1

    def members(self) -> NDArray[np.bool_]:
        """Which leaves each node holds, bool (2K - 1, K).

        >>> MergeTree(merges=np.array([[0, 2], [1, 3]]), heights=np.array([0.1, 0.2])).members()[3:].tolist()
        [[True, False, True], [True, True, True]]
        """
        members: NDArray[np.bool_] = _members(self.merges)
        return members

    def lifetimes(self) -> NDArray[np.float64]:
        """Span of dissimilarity over which each node exists, float64 (2K - 1,); 0 for the root.

        >>> MergeTree(merges=np.array([[0, 2], [1, 3]]), heights=np.array([1.0, 3.0])).lifetimes().tolist()
        [1.0, 3.0, 1.0, 2.0, 0.0]
        """
        born = np.concatenate([np.zeros(self.num_leaves), self.heights])
        ended = born.copy()
        ended[self.merges] = self.heights[:, None]
        lifetimes: NDArray[np.float64] = ended - born
        return lifetimes


def grow_tree(
    features: NDArray[np.floating], areas: NDArray[np.float64], borders: Borders, rule: MergeRule
) -> MergeTree:
    """The merge tree of K >= 1 connected leaves with mean features (K, C) and areas (K,).

    Of equal dissimilarities the pair with the smaller leaves merges first; a region goes by its first leaf.
    The inputs are not modified.

    Source: Arbeláez, Maire, Fowlkes, Malik, "Contour detection and hierarchical image segmentation", PAMI
    2011, section 4.2 (greedy merging of neighbours); the dissimilarity is ours.
    """
    sums = features.astype(np.float64) * areas[:, None]
    relative_areas = areas / areas.mean()
    own_borders = Borders(borders.lengths.copy(), borders.strengths.copy())
    merges, heights = _merge(sums @ sums.T, relative_areas, own_borders, rule)
    return MergeTree(merges=merges, heights=heights)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _merge(
    products: NDArray[np.float64], areas: NDArray[np.float64], borders: Borders, rule: MergeRule
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """`grow_tree` on the dot products (K, K) of summed features and on areas relative to m, in place."""
    count = len(areas)
    table = np.full((count, count), np.inf)
    for i in range(count):
        for j in range(count):
            if i != j and borders.lengths[i, j] > 0:
                table[i, j] = _dissimilarity(i, j, products, areas, borders, rule)
    nearest = np.empty(count, np.int64)
    for i in range(count):
        nearest[i] = table[i].argmin()
    nodes = np.arange(count)
    merges = np.empty((count - 1, 2), np.int64)
    heights = np.empty(count - 1)
    for step in range(count - 1):
        i = 0
        for k in range(1, count):
            if table[k, nearest[k]] < table[i, nearest[i]]:
                i = k
        j = nearest[i]
        i, j = min(i, j), max(i, j)
        merges[step] = (nodes[i], nodes[j])
        heights[step] = max(table[i, j], heights[step - 1] if step > 0 else 0.0)
        nodes[i] = count + step
        _join(i, j, products, areas, borders)
        table[j] = np.inf
        table[:, j] = np.inf
        for k in range(count):
            if borders.lengths[i, k] > 0:
                value = _dissimilarity(i, k, products, areas, borders, rule)
                table[i, k] = table[k, i] = value
        for k in range(count):
            if k == i or nearest[k] == i or nearest[k] == j:
                nearest[k] = table[k].argmin()
            elif table[k, i] < table[k, nearest[k]] or (
                table[k, i] == table[k, nearest[k]] and i < nearest[k]
            ):
                nearest[k] = i
    return merges, heights


@njit(cache=True)  # type: ignore[untyped-decorator]
def _dissimilarity(
    i: int,
    j: int,
    products: NDArray[np.float64],
    areas: NDArray[np.float64],
    borders: Borders,
    rule: MergeRule,
) -> float:
    """The rule of `MergeRule` for two neighbours, by relative areas; a zero feature has cosine 0 with all."""
    norms = np.sqrt(products[i, i] * products[j, j])
    cosine = products[i, j] / norms if norms > 0 else 0.0
    contrast = max(1 - cosine, 0.0) + rule.border_weight * borders.strengths[i, j] / borders.lengths[i, j]
    return float(contrast * (areas[i] * areas[j] / (areas[i] + areas[j])) ** rule.size_power)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _join(
    i: int, j: int, products: NDArray[np.float64], areas: NDArray[np.float64], borders: Borders
) -> None:
    """Give region i what region j has, in place; j keeps no border."""
    areas[i] += areas[j]
    products[i] += products[j]
    products[:, i] += products[:, j]
    for matrix in (borders.lengths, borders.strengths):
        matrix[i] += matrix[j]
        matrix[:, i] = matrix[i]
        matrix[i, i] = 0
        matrix[j] = 0
        matrix[:, j] = 0


@njit(cache=True)  # type: ignore[untyped-decorator]
def _members(merges: NDArray[np.int64]) -> NDArray[np.bool_]:
    """`MergeTree.members`."""
    count = len(merges) + 1
    members = np.zeros((2 * count - 1, count), np.bool_)
    for leaf in range(count):
        members[leaf, leaf] = True
    for step in range(count - 1):
        members[count + step] = members[merges[step, 0]] | members[merges[step, 1]]
    return members
