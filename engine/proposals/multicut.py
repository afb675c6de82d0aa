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

from engine.errors import ConfigurationError
from engine.proposals.affinity_graph import Offset, edge_affinities, grid_edges, ring_offsets
from engine.proposals.lower_bound import multicut_lower_bound
from engine.proposals.partitions import connected_parts, merge_parallel_edges, multicut_objective
from engine.proposals.patches import cover_background, touched_sides
from engine.types import Optimality, Reason

# Of the noise on the costs of a further start, relative to their mean size.
_NOISE = 0.4


@dataclass(frozen=True, kw_only=True)
class MultiCutConfig:
    """Constants of MultiCut proposals."""

    distances: tuple[int, ...] = (1, 3, 9)
    """Edges join each patch to the eight patches at each of these distances."""
    biases: tuple[float, ...] = (0.2, 0.4, 0.9)
    """For each distance, the cosine above which patches belong together; higher gives more and smaller parts.
    It depends on the encoder and on the images: jobs/choose_bias.py finds it without ground truth."""
    starts: int = 3
    """Searches for the best partition, whose results are merged into a better one; 1 is the fast setting."""
    seed: int = 0
    """Of the noise that makes the searches differ."""
    bound_rounds: int = 1
    """Effort of the lower bound behind the gap: 8 gives less than half the gap, in ten times the time."""
    border_coverage: float = 0.5
    """A part covers an image side if it holds more than this share of the side's patches."""
    border_sides: int = 2
    """A part that covers at least this many of the four sides is background."""
    min_patches: int = 2
    """Parts of fewer patches are no proposals. Where objects are as small as a patch, give 1."""

    def __post_init__(self) -> None:
        if not self.distances or min(self.distances) < 1 or len(set(self.distances)) < len(self.distances):
            raise ConfigurationError(
                f"multicut.distances are different numbers of patches >= 1, got {self.distances}"
            )
        if len(self.biases) != len(self.distances):
            raise ConfigurationError(
                f"multicut.biases are one for each of {len(self.distances)} distances, got {self.biases}"
            )
        if not np.isfinite(self.biases).all():
            raise ConfigurationError(f"multicut.biases are finite numbers, got {self.biases}")
        for name in ("starts", "bound_rounds", "min_patches"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"multicut.{name} is at least 1, got {getattr(self, name)}")
        if not 0 <= self.border_coverage <= 1:
            raise ConfigurationError(
                f"multicut.border_coverage is a share, 0 to 1, got {self.border_coverage}"
            )
        if not 1 <= self.border_sides <= 4:
            raise ConfigurationError(f"multicut.border_sides is 1 to 4 sides, got {self.border_sides}")

    @property
    def offsets(self) -> tuple[Offset, ...]:
        """The offsets of all edges, distance by distance."""
        return tuple(offset for distance in self.distances for offset in ring_offsets(distance))

    @property
    def offset_biases(self) -> NDArray[np.float64]:
        """The bias of each of the offsets."""
        return np.repeat(np.array(self.biases, np.float64), len(ring_offsets(1)))


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
    Raises ImageError, with the image's `name`, where features are NaN or infinite. Source: METHODS 3.1, 3.2.
    """
    features = torch.as_tensor(features_hwc)
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
