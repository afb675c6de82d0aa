"""A lower bound on the multicut objective of every partition, from which the optimality gap follows.

Costs are moved from edges to cycles and back, which changes no partition's objective. The bound is the sum of
the minima of the edges and cycles, each minimised on its own. No partition cuts a cycle exactly once, so each
conflicted cycle (one edge of negative cost, all others positive) raises the bound.

1. Packing: shortest conflicted cycles first, each takes as much cost as its weakest edge has. Ours, after
   Lange, Karrenbauer and Andres, "Partial Optimality and Fast Lower Bounds for Weighted Correlation
   Clustering", ICML 2018, section 5.
2. Message passing: edge by edge, the cost is redistributed among the cycles through the edge. This is block
   coordinate ascent in the dual of the cycle relaxation: the bound never decreases, and it improves further
   where packing is stuck. Swoboda and Andres, "A Message Passing Algorithm for the Minimum Cost Multicut
   Problem", CVPR 2017 (arXiv 1612.05441), there on triangles; Abbas and Swoboda, "RAMA", CVPR 2022 (arXiv
   2109.01838), section 3.2.

The two alternate: message passing exposes conflicts that packing did not find.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from engine.proposals.partitions import merge_parallel_edges

# Costs below this share of the largest count as zero, so that packing ends and rounding creates no cycles.
_RELATIVE_TOLERANCE = 1e-6


class Adjacency(NamedTuple):
    """Incident edges of each node: entries `starts[n]:starts[n + 1]` of `neighbours` and `edges` (ids)."""

    starts: NDArray[np.int64]
    neighbours: NDArray[np.int64]
    edges: NDArray[np.int64]


class _Cycles(NamedTuple):
    """Cycles as lists of edges: entries `starts[k]:starts[k + 1]` of `edges` (ids) and of the `costs` that
    cycle k holds of them."""

    starts: NDArray[np.int64]
    edges: NDArray[np.int64]
    costs: NDArray[np.float64]


class _Incidences(NamedTuple):
    """Occurrences of edges in the arrays of `_Cycles`: edge e at `positions[starts[e]:starts[e + 1]]`, and
    position p in cycle `cycle_of_position[p]`."""

    starts: NDArray[np.int64]
    positions: NDArray[np.int64]
    cycle_of_position: NDArray[np.int64]


def multicut_lower_bound(
    num_nodes: int,
    uv: NDArray[np.integer],
    cost: NDArray[np.floating],
    num_rounds: int = 1,
    max_length: int = 5,
    num_sweeps: int = 5,
) -> float:
    """A lower bound on the objective of every partition, the sum of the costs of its cut edges.

    `uv` (E, 2) may be any pairs of nodes below `num_nodes`, `cost` (E,) is finite. Each of `num_rounds` packs
    conflicted cycles of up to `max_length` edges; between rounds, messages are passed in `num_sweeps` forward
    and backward sweeps over all cycles so far. Raises ValueError for costs that are not finite.

    >>> triangle = np.array([[0, 1], [1, 2], [0, 2]])
    >>> multicut_lower_bound(3, triangle, np.array([2.0, 1.0, -3.0]))  # cutting two edges: -3 + 1
    -2.0
    """
    ends, edge_costs = merge_parallel_edges(num_nodes, uv, cost)
    adjacency = build_adjacency(num_nodes, ends)
    tolerance = _RELATIVE_TOLERANCE * float(np.abs(edge_costs).max(initial=0.0))
    cycles = _Cycles(np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros(0))
    for number in range(num_rounds):
        if number > 0:
            _pass_messages(edge_costs, cycles, _incidences(cycles, len(edge_costs)), num_sweeps)
        packed = _Cycles(*_pack_cycles(adjacency, ends, edge_costs, max_length, tolerance))
        cycles = _concatenate(cycles, packed)
    return float(np.minimum(edge_costs, 0).sum() + _cycle_minima(cycles))


def build_adjacency(num_nodes: int, uv: NDArray[np.integer]) -> Adjacency:
    """The incident edges of every node, in the order of `uv` (E, 2)."""
    sources, targets = np.concatenate([uv[:, 0], uv[:, 1]]), np.concatenate([uv[:, 1], uv[:, 0]])
    order = np.argsort(sources, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(sources, minlength=num_nodes))])
    edges = np.tile(np.arange(len(uv)), 2)[order]
    return Adjacency(starts=starts, neighbours=targets[order].astype(np.int64), edges=edges)


def _incidences(cycles: _Cycles, num_edges: int) -> _Incidences:
    positions = np.argsort(cycles.edges, kind="stable")
    starts = np.searchsorted(cycles.edges[positions], np.arange(num_edges + 1))
    cycle_of_position = np.repeat(np.arange(len(cycles.starts) - 1), np.diff(cycles.starts))
    return _Incidences(starts=starts, positions=positions, cycle_of_position=cycle_of_position)


def _concatenate(first: _Cycles, second: _Cycles) -> _Cycles:
    starts = np.concatenate([first.starts, second.starts[1:] + first.starts[-1]])
    edges = np.concatenate([first.edges, second.edges])
    return _Cycles(starts=starts, edges=edges, costs=np.concatenate([first.costs, second.costs]))


class _Search(NamedTuple):
    """Scratch space of path searches: per node the edge to the path's end and the edge by which the search
    reached it, both -1 between searches; the queue; the edges of the last path found."""

    last_hops: NDArray[np.int64]
    came_by: NDArray[np.int64]
    queue: NDArray[np.int64]
    path: NDArray[np.int64]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _pack_cycles(
    adjacency: Adjacency,
    ends: NDArray[np.int64],
    costs: NDArray[np.float64],
    max_length: int,
    tolerance: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Move cost from the edges to conflicted cycles, shortest first; returns the arrays of `_Cycles`.

    `costs` (E,) is modified. A cycle that takes the cost c holds -c of its negative edge and c of the others.
    """
    num_nodes = len(adjacency.starts) - 1
    search = _Search(
        np.full(num_nodes, -1), np.full(num_nodes, -1), np.empty(num_nodes, np.int64),
        np.empty(max_length, np.int64),
    )  # fmt: skip
    starts, edges, held = [0], [0][:0], [0.0][:0]
    is_disconnected = np.zeros(len(costs), np.bool_)
    for length in range(3, max_length + 1):
        for edge in range(len(costs)):
            while costs[edge] < -tolerance and not is_disconnected[edge]:
                hops = _find_path(adjacency, ends, costs, edge, length - 1, tolerance, search)
                if hops <= 0:
                    is_disconnected[edge] = hops < 0
                    break
                taken = -costs[edge]
                for hop in range(hops):
                    taken = min(taken, costs[search.path[hop]])
                costs[edge] += taken
                edges.append(edge)
                held.append(-taken)
                for hop in range(hops):
                    costs[search.path[hop]] -= taken
                    edges.append(search.path[hop])
                    held.append(taken)
                starts.append(len(edges))
    return np.array(starts), np.array(edges), np.array(held)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _find_path(  # noqa: PLR0913, PLR0917
    adjacency: Adjacency,
    ends: NDArray[np.int64],
    costs: NDArray[np.float64],
    edge: int,
    max_hops: int,
    tolerance: float,
    search: _Search,
) -> int:
    """Write a shortest path of positive edges between the ends of `edge` to `search.path`; return its length.

    The length is 0 if every path is longer than `max_hops`, and -1 if there is no path.
    """
    source, target = ends[edge]
    for slot in range(adjacency.starts[target], adjacency.starts[target + 1]):
        if costs[adjacency.edges[slot]] > tolerance:
            search.last_hops[adjacency.neighbours[slot]] = adjacency.edges[slot]
    search.came_by[source], search.queue[0] = edge, source
    reached, position, meeting = 1, 0, -1
    for _ in range(max_hops - 1):
        level_stop = reached
        while position < level_stop and meeting < 0:
            node = search.queue[position]
            position += 1
            for slot in range(adjacency.starts[node], adjacency.starts[node + 1]):
                to = adjacency.neighbours[slot]
                if search.came_by[to] < 0 and to != target and costs[adjacency.edges[slot]] > tolerance:
                    search.came_by[to] = adjacency.edges[slot]
                    search.queue[reached] = to
                    reached += 1
                    if search.last_hops[to] >= 0:
                        meeting = to
                        break
    hops = 0 if position < reached else -1
    if meeting >= 0:
        search.path[0], hops, node = search.last_hops[meeting], 1, meeting
        while node != source:
            search.path[hops] = search.came_by[node]
            node = ends[search.path[hops], 0] + ends[search.path[hops], 1] - node
            hops += 1
    search.came_by[search.queue[:reached]] = -1
    search.last_hops[adjacency.neighbours[adjacency.starts[target] : adjacency.starts[target + 1]]] = -1
    return hops


@njit(cache=True)  # type: ignore[untyped-decorator]
def _pass_messages(
    edge_costs: NDArray[np.float64], cycles: _Cycles, incidences: _Incidences, num_sweeps: int
) -> None:
    """Redistribute costs between cycles in forward and backward sweeps; edges end with the surplus."""
    num_edges = len(edge_costs)
    for sweep in range(2 * num_sweeps):
        for i in range(num_edges):
            edge = i if sweep % 2 == 0 else num_edges - 1 - i
            _collect(edge_costs, cycles, incidences, edge)
            count = incidences.starts[edge + 1] - incidences.starts[edge]
            if count > 0:
                share = edge_costs[edge] / count
                for slot in range(incidences.starts[edge], incidences.starts[edge + 1]):
                    cycles.costs[incidences.positions[slot]] += share
                edge_costs[edge] = 0.0
    for edge in range(num_edges):
        _collect(edge_costs, cycles, incidences, edge)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _collect(edge_costs: NDArray[np.float64], cycles: _Cycles, incidences: _Incidences, edge: int) -> None:
    """Move the min-marginals of the cycles through an edge to it, which makes them indifferent to it."""
    for slot in range(incidences.starts[edge], incidences.starts[edge + 1]):
        position = incidences.positions[slot]
        cycle = incidences.cycle_of_position[position]
        start, stop = cycles.starts[cycle], cycles.starts[cycle + 1]
        others, smallest, negatives = _gather(cycles.costs, start, stop, position)
        cut = cycles.costs[position] + (others if negatives > 0 else smallest)
        whole = others if negatives != 1 else min(0.0, others + smallest)
        cycles.costs[position] -= cut - whole
        edge_costs[edge] += cut - whole


@njit(cache=True)  # type: ignore[untyped-decorator]
def _cycle_minima(cycles: _Cycles) -> float:
    """Sum of the minima of the cycles, each cut nowhere or at least twice."""
    total = 0.0
    for cycle in range(len(cycles.starts) - 1):
        best, smallest, negatives = _gather(cycles.costs, cycles.starts[cycle], cycles.starts[cycle + 1], -1)
        total += best if negatives != 1 else min(0.0, best + smallest)
    return total


@njit(cache=True)  # type: ignore[untyped-decorator]
def _gather(costs: NDArray[np.float64], start: int, stop: int, excluded: int) -> tuple[float, float, int]:
    """Sum of the negative costs, smallest of the others and number of the negative ones, from `start` to
    `stop` except at `excluded`."""
    total, smallest, negatives = 0.0, np.inf, 0
    for position in range(start, stop):
        if position == excluded:
            continue
        if costs[position] < 0:
            negatives += 1
            total += costs[position]
        else:
            smallest = min(smallest, costs[position])
    return total, smallest, negatives
