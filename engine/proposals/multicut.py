"""MultiCut proposals: cut a graph over the patches into as many parts as pay.

Hoang, "Unsupervised Instance Segmentation with Superpixels", arXiv 2509.05352, the coarse masks. The paper
does not say which edges its graph has and how affinities become costs; that is stated where it is decided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from bioimage_cpp.graph import UndirectedGraph
from bioimage_cpp.graph.multicut import GreedyAdditiveMulticut, KernighanLinMulticut, MulticutObjective
from numpy.typing import NDArray

from engine.proposals.affinity_graph import edge_affinities, grid_edges
from engine.proposals.config import MultiCutConfig
from engine.proposals.lower_bound import multicut_lower_bound
from engine.proposals.partitions import connected_parts, merge_parallel_edges, multicut_objective
from engine.proposals.patches import cover_background, features_tensor, touched_sides
from engine.types import Optimality, Reason

# Of the noise on the costs of a further start, relative to their mean size.
_NOISE = 0.4


@dataclass(frozen=True, kw_only=True, eq=False)
class MultiCutResult:
    """`masks` are bool (N, h, w) over patches, `labels` int64 (h, w) all parts; `skipped` says why N is 0."""

    masks: NDArray[np.bool_]
    labels: NDArray[np.int64]
    optimality: Optimality
    skipped: Reason | None = None


def run_multicut(
    features_hwc: NDArray[np.floating] | torch.Tensor,
    config: MultiCutConfig,
    name: str = "",
    seen_background: NDArray[np.bool_] | None = None,
) -> MultiCutResult:
    """Masks of one image: the parts of its patches but for background and tiny ones, by label.

    For a tile, `seen_background` (h, w) takes the place of the border, see `part_masks`.

    `features_hwc` holds one feature a patch, (h, w, C), of any floating type and length, on any device.
    Raises ValueError for another shape and ImageError, with the image's `name`, where features are NaN or
    infinite. Source: METHODS 3.1, 3.2.
    """
    features = features_tensor(features_hwc)
    size = (features.shape[0], features.shape[1])
    uv, classes = grid_edges(size, config.offsets)
    affinities = edge_affinities(features[None], config.offsets, (name,))[0].cpu().numpy()
    cost = affinities - config.offset_biases[classes]
    labels = solve_multicut(size[0] * size[1], uv, cost, config.starts, config.seed)
    bound = multicut_lower_bound(size[0] * size[1], uv, cost, num_rounds=config.bound_rounds)
    masks = part_masks(labels.reshape(size), config, seen_background)
    return MultiCutResult(
        masks=masks,
        labels=labels.reshape(size),
        optimality=_optimality(multicut_objective(labels, uv, cost), bound),
        skipped=Reason.NO_FOREGROUND if len(masks) == 0 else None,
    )


def _optimality(objective: float, bound: float) -> Optimality:
    # The bound is not positive; rounding may bring that of an optimum above it.
    gap = max(0.0, objective - bound) / -bound if bound < 0 else 0.0
    return Optimality(objective=objective, gap=gap)


def part_masks(
    labels: NDArray[np.int64], config: MultiCutConfig, seen_background: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Masks (N, h, w) of the parts in labels (h, w) but for background and those with too few patches.

    `seen_background` (h, w) is for a tile: where the whole image shows background. There a part is background
    that covers more than `border_coverage` of it.
    """
    parts = np.flatnonzero(np.bincount(labels.ravel()) >= config.min_patches)
    masks = labels == parts[:, None, None]
    if seen_background is None:
        is_background = touched_sides(masks, config.border_coverage) >= config.border_sides
    else:
        is_background = cover_background(masks, seen_background, config.border_coverage)
    candidates: NDArray[np.bool_] = masks[~is_background]
    return candidates


def solve_multicut(
    num_nodes: int,
    uv: NDArray[np.integer],
    cost: NDArray[np.floating],
    starts: int = 3,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Labels (num_nodes,) of a partition whose cut edges cost little in sum: a good local optimum.

    Nodes that an edge of positive `cost` (E,) joins belong together, those of a negative one apart. `uv`
    (E, 2) may be any pairs of nodes below `num_nodes`: costs of parallel edges add up, loops do not count.
    Every part is connected by edges; parts are numbered from 0 in the order of their first nodes.

    The first start merges greedily (Beier et al., "Fusion Moves for Correlation Clustering", CVPR 2015) and
    moves nodes between parts as long as it pays (Keuper et al., "Efficient Decomposition of Image and Mesh
    Graphs by Lifted Multicuts", ICCV 2015). Further ones do so from a greedy merging of noisy costs; the
    nodes on which all starts agree are then merged, and what is left is solved again. Raises ValueError for
    costs that are not finite.

    >>> square = np.array([[0, 1], [1, 2], [2, 3], [3, 0]])
    >>> solve_multicut(4, square, np.array([1.0, -2.0, 1.0, -2.0])).tolist()
    [0, 0, 1, 1]
    """
    uv, cost = merge_parallel_edges(num_nodes, uv, cost)
    if len(uv) == 0:
        return np.arange(num_nodes)
    problem = MulticutObjective(UndirectedGraph.from_unique_edges(num_nodes, uv.astype(np.uint64)), cost)
    noise = _NOISE * float(np.abs(cost).mean())
    solutions = []
    for start in range(starts):
        problem.reset_labels()
        GreedyAdditiveMulticut(add_noise=start > 0, sigma=noise, seed=seed + start).optimize(problem)
        solutions.append(_move_nodes(problem))
    objectives = [multicut_objective(labels, uv, cost) for labels in solutions]
    best = solutions[int(np.argmin(objectives))]
    if starts > 1:
        problem.labels = _fused(uv, cost, solutions)
        fused = _move_nodes(problem)
        best = fused if multicut_objective(fused, uv, cost) <= min(objectives) else best
    return connected_parts(best, uv)


def _move_nodes(problem: MulticutObjective) -> NDArray[Any]:
    """Kernighan-Lin from the problem's labels."""
    labels: NDArray[Any] = KernighanLinMulticut().optimize(problem).copy()
    return labels


def _fused(
    uv: NDArray[np.int64], cost: NDArray[np.float64], solutions: list[NDArray[Any]]
) -> NDArray[np.uint64]:
    """The best partition that cuts only where some solution does, as far as can be found."""
    _, groups = np.unique(np.stack(solutions, axis=1), axis=0, return_inverse=True)
    return solve_multicut(int(groups.max()) + 1, groups[uv], cost, starts=1)[groups].astype(np.uint64)
