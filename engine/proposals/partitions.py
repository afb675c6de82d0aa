"""Partitions of a graph's nodes, as labels; a graph is pairs of nodes with costs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def merge_parallel_edges(
    num_nodes: int, uv: NDArray[np.integer], cost: NDArray[np.floating]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Sorted unique edges (E, 2), smaller node first, without loops, with the summed costs of parallel edges.

    >>> merge_parallel_edges(3, np.array([[2, 1], [0, 1], [1, 2], [0, 0]]), np.array([1.0, 2.0, 3.0, 4.0]))
    (array([[0, 1],
           [1, 2]]), array([2., 4.]))
    """
    if not np.isfinite(cost).all():
        raise ValueError("costs must be finite")
    ends = np.sort(uv.astype(np.int64), axis=1)
    is_loop = ends[:, 0] == ends[:, 1]
    keys, edges = np.unique(ends[~is_loop] @ (num_nodes, 1), return_inverse=True)
    costs = np.bincount(edges, weights=cost[~is_loop], minlength=len(keys)).astype(np.float64)
    return np.stack([keys // num_nodes, keys % num_nodes], axis=1), costs


def connected_parts(labels: NDArray[np.integer], uv: NDArray[np.integer]) -> NDArray[np.int64]:
    """Split the parts of labels (num_nodes,) into the components that edges (E, 2) connect.

    Components are numbered from 0 in the order of their first nodes.

    >>> connected_parts(np.array([5, 3, 5]), np.array([[0, 1], [1, 2]])).tolist()
    [0, 1, 2]
    """
    inside = uv[labels[uv[:, 0]] == labels[uv[:, 1]]]
    shape = (len(labels), len(labels))
    graph = coo_array((np.ones(len(inside), np.int8), (inside[:, 0], inside[:, 1])), shape=shape)
    _, parts = connected_components(graph.tocsr(), directed=False)
    _, first, renumbered = np.unique(parts, return_index=True, return_inverse=True)
    ranks = np.empty(len(first), np.int64)
    ranks[np.argsort(first)] = np.arange(len(first))
    numbered: NDArray[np.int64] = ranks[renumbered]
    return numbered


def multicut_objective(
    labels: NDArray[np.integer], uv: NDArray[np.integer], cost: NDArray[np.floating]
) -> float:
    """Sum of the costs of the edges (E, 2) between parts; lower is better, 0 for a single part.

    >>> triangle = np.array([[0, 1], [1, 2], [0, 2]])
    >>> multicut_objective(np.array([0, 0, 1]), triangle, np.array([1.0, 2.0, -3.0]))
    -1.0
    """
    return float(cost[labels[uv[:, 0]] != labels[uv[:, 1]]].sum())
