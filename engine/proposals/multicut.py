"""MultiCut proposals: the parts of a minimum cost multicut of a graph over the patches.

Source: Hoang, "Unsupervised Instance Segmentation with Superpixels", arXiv 2509.05352, the coarse masks. The
paper defines neither the edges of its graph nor the map from affinities to costs; ours are in
`MultiCutConfig`.
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

# Standard deviation of the noise on the costs of further starts, relative to their mean magnitude.
_NOISE = 0.4


@dataclass(frozen=True, kw_only=True, eq=False)
class MultiCutResult:
    """`masks` are bool (N, h, w) over patches, `labels` int64 (h, w) all parts; `skipped` is why N is 0."""

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
    """Masks of one image: the parts of its multicut except background and tiny ones, by label.

    `features_hwc` holds one feature per patch, (h, w, C), of any floating dtype and length, on any device.
    For a tile, `seen_background` (h, w) replaces the border rule, see `part_masks`. Raises ValueError for
    another shape and ImageError with the image's `name` if features are NaN or infinite.
    Source: docs/methods.md, 3.1 and 3.2.
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
    # The bound is at most 0; rounding may bring the bound of an optimum above its objective.
    gap = max(0.0, objective - bound) / -bound if bound < 0 else 0.0
    return Optimality(objective=objective, gap=gap)


def part_masks(
    labels: NDArray[np.int64], config: MultiCutConfig, seen_background: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Masks (N, h, w) of the parts in labels (h, w) except background and parts with too few patches.

    For a tile, `seen_background` (h, w) is the background of the whole image; parts are background if they
    cover more than `border_coverage` of it.
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
    """Labels (num_nodes,) of a partition with a low sum of the costs of its cut edges: a good local optimum.

    Edges of positive `cost` (E,) attract, edges of negative cost repel. `uv` (E, 2) may be any pairs of nodes
    below `num_nodes`; costs of parallel edges add up, loops are ignored. Every part is connected; parts are
    numbered from 0 in the order of their first nodes.

    The first start is greedy additive edge contraction (Beier et al., "Fusion Moves for Correlation
    Clustering", CVPR 2015) followed by Kernighan-Lin moves (Keuper et al., "Efficient Decomposition of Image
    and Mesh Graphs by Lifted Multicuts", ICCV 2015). Further starts contract edges by noisy costs. Nodes that
    are in one part in all solutions are then merged, and the smaller problem is solved again. Raises
    ValueError for costs that are not finite.

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
    """Kernighan-Lin moves from the problem's current labels."""
    labels: NDArray[Any] = KernighanLinMulticut().optimize(problem).copy()
    return labels


def _fused(
    uv: NDArray[np.int64], cost: NDArray[np.float64], solutions: list[NDArray[Any]]
) -> NDArray[np.uint64]:
    """A good partition among those that cut only edges that some solution cuts."""
    _, groups = np.unique(np.stack(solutions, axis=1), axis=0, return_inverse=True)
    return solve_multicut(int(groups.max()) + 1, groups[uv], cost, starts=1)[groups].astype(np.uint64)
