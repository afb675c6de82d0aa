"""Greedy merging of neighbouring regions, most similar first, until one is left."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from engine.superpixels.watershed import Arcs

_NONE = -1


class Regions(NamedTuple):
    """R regions: areas in pixels, float64 (R,), and mean CIELAB colours, float64 (R, 3)."""

    areas: NDArray[np.float64]
    colours: NDArray[np.float64]


class MergeRule(NamedTuple):
    """The dissimilarity of two regions with mean colours c and c', separated by an arc of mean strength e.

    dissimilarity = (floor + e + colour_weight |c - c'| / 100) * h / (1 + h / area_scale_px) / l^length_power,
    where h is half the harmonic mean of the two areas and l the arc's length in pixel sides. Small regions
    merge early, sizes above the area scale hardly matter, and the longer of two equal arcs vanishes first.
    """

    floor: float
    colour_weight: float
    area_scale_px: float
    length_power: float


class _Links(NamedTuple):
    """A linked list of arcs for every region. Arc a has slot 2a in one list and 2a + 1 in the other.

    `heads` holds each region's first slot, `following` each slot's next. `marks` is scratch space of
    `_join_arcs`, _NONE between calls.
    """

    heads: NDArray[np.int32]
    following: NDArray[np.int32]
    marks: NDArray[np.int32]


class _Queue(NamedTuple):
    """A binary heap of arcs, lowest dissimilarity first, ties by index.

    `heap[:size[0]]` are the queued arcs. `positions` holds each arc's position in the heap, _NONE for removed
    arcs, and `dissimilarities` its priority.
    """

    heap: NDArray[np.int32]
    positions: NDArray[np.int32]
    dissimilarities: NDArray[np.float64]
    size: NDArray[np.int64]


@njit(cache=True)  # type: ignore[untyped-decorator]
def merge_regions(
    arcs: Arcs, regions: Regions, rule: MergeRule
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Merge R connected regions into one: R - 1 merges in order, as pairs (R - 1, 2) and heights (R - 1,).

    A pair is (kept, absorbed); the kept region has the smaller label and the area of both from then on.
    Heights are the running maximum of the dissimilarities at which regions merged, hence an ultrametric. Ties
    go to the arc with the smaller index. The inputs are not modified.

    Source: greedy merging into an ultrametric contour map after Arbeláez, "Boundary extraction in natural
    images using ultrametric contour maps", CVPRW 2006, sections 3 and 4. The area term is ours.
    """
    arcs = Arcs(arcs.pairs.copy(), arcs.strengths.copy(), arcs.lengths.copy())
    regions = Regions(regions.areas.copy(), regions.colours.copy())
    num_regions = len(regions.areas)
    links = _link_arcs(arcs.pairs, num_regions)
    queue = _queue_arcs(arcs, regions, rule)
    pairs = np.empty((max(num_regions - 1, 0), 2), np.int32)
    heights = np.empty(max(num_regions - 1, 0))
    num_merged, height = 0, 0.0
    while queue.size[0] > 0:
        arc = queue.heap[0]
        height = max(height, queue.dissimilarities[arc])
        _remove(queue, arc)
        first, second = arcs.pairs[arc, 0], arcs.pairs[arc, 1]
        kept, absorbed = min(first, second), max(first, second)
        pairs[num_merged, 0], pairs[num_merged, 1] = kept, absorbed
        heights[num_merged] = height
        num_merged += 1
        _join_regions(kept, absorbed, regions)
        _join_arcs(kept, absorbed, arcs, links, queue)
        slot = links.heads[kept]
        while slot != _NONE:
            changed = slot >> 1
            queue.dissimilarities[changed] = _dissimilarity(changed, arcs, regions, rule)
            _restore(queue, queue.positions[changed])
            slot = links.following[slot]
    return pairs[:num_merged], heights[:num_merged]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _queue_arcs(arcs: Arcs, regions: Regions, rule: MergeRule) -> _Queue:
    """A queue of all arcs."""
    dissimilarities = np.empty(len(arcs.pairs))
    for arc in range(len(arcs.pairs)):
        dissimilarities[arc] = _dissimilarity(arc, arcs, regions, rule)
    order = np.argsort(dissimilarities, kind="mergesort").astype(np.int32)
    positions = np.empty(len(order), np.int32)
    positions[order] = np.arange(len(order)).astype(np.int32)
    return _Queue(order, positions, dissimilarities, np.array([len(order)]))


@njit(cache=True)  # type: ignore[untyped-decorator]
def _precedes(queue: _Queue, first: int, second: int) -> bool:
    """Whether one arc comes before another in the queue's order."""
    before, after = queue.dissimilarities[first], queue.dissimilarities[second]
    return bool(before < after or (before == after and first < second))


@njit(cache=True)  # type: ignore[untyped-decorator]
def _restore(queue: _Queue, position: int) -> None:
    """Move the arc at a position of the heap up or down until the heap is in order."""
    heap, positions, size = queue.heap, queue.positions, queue.size[0]
    arc = heap[position]
    while position > 0 and _precedes(queue, arc, heap[(position - 1) >> 1]):
        heap[position] = heap[(position - 1) >> 1]
        positions[heap[position]] = position
        position = (position - 1) >> 1
    child = 2 * position + 1
    while child < size:
        if child + 1 < size and _precedes(queue, heap[child + 1], heap[child]):
            child += 1
        if not _precedes(queue, heap[child], arc):
            break
        heap[position] = heap[child]
        positions[heap[position]] = position
        position, child = child, 2 * child + 1
    heap[position] = arc
    positions[arc] = position


@njit(cache=True)  # type: ignore[untyped-decorator]
def _remove(queue: _Queue, arc: int) -> None:
    """Remove an arc from the queue."""
    position = queue.positions[arc]
    queue.positions[arc] = _NONE
    queue.size[0] -= 1
    last = queue.heap[queue.size[0]]
    if last != arc:
        queue.heap[position] = last
        _restore(queue, position)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _dissimilarity(arc: int, arcs: Arcs, regions: Regions, rule: MergeRule) -> float:
    """The dissimilarity of the two regions of one arc, see `MergeRule`."""
    first, second = arcs.pairs[arc, 0], arcs.pairs[arc, 1]
    squared = 0.0
    for channel in range(regions.colours.shape[1]):
        squared += (regions.colours[first, channel] - regions.colours[second, channel]) ** 2
    contrast = (
        rule.floor + arcs.strengths[arc] / arcs.lengths[arc] + rule.colour_weight * np.sqrt(squared) / 100
    )
    area = regions.areas[first] * regions.areas[second] / (regions.areas[first] + regions.areas[second])
    smallness = area / (1 + area / rule.area_scale_px)
    return float(contrast * smallness / arcs.lengths[arc] ** rule.length_power)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _link_arcs(pairs: NDArray[np.int32], num_regions: int) -> _Links:
    """Linked lists of the arcs of every region."""
    heads = np.full(num_regions, _NONE, np.int32)
    following = np.full(2 * len(pairs), _NONE, np.int32)
    for arc in range(len(pairs)):
        for end in range(2):
            following[2 * arc + end] = heads[pairs[arc, end]]
            heads[pairs[arc, end]] = 2 * arc + end
    return _Links(heads, following, np.full(num_regions, _NONE, np.int32))


@njit(cache=True)  # type: ignore[untyped-decorator]
def _join_regions(kept: int, absorbed: int, regions: Regions) -> None:
    """Update the kept region's area and mean colour to the union's."""
    area = regions.areas[kept] + regions.areas[absorbed]
    for channel in range(regions.colours.shape[1]):
        total = regions.colours[kept, channel] * regions.areas[kept]
        total += regions.colours[absorbed, channel] * regions.areas[absorbed]
        regions.colours[kept, channel] = total / area
    regions.areas[kept] = area


@njit(cache=True)  # type: ignore[untyped-decorator]
def _join_arcs(kept: int, absorbed: int, arcs: Arcs, links: _Links, queue: _Queue) -> None:
    """Move the absorbed region's arcs to the kept one; two arcs to the same neighbour are joined."""
    head = _NONE
    for region in (kept, absorbed):
        slot = links.heads[region]
        while slot != _NONE:
            upcoming = links.following[slot]
            arc = slot >> 1
            if queue.positions[arc] != _NONE:
                # A slot's parity never changes and tells which end of the arc the region is at.
                end = slot & 1
                neighbour = arcs.pairs[arc, 1 - end]
                twin = links.marks[neighbour]
                if twin != _NONE:
                    arcs.strengths[twin] += arcs.strengths[arc]
                    arcs.lengths[twin] += arcs.lengths[arc]
                    _remove(queue, arc)
                else:
                    arcs.pairs[arc, end] = kept
                    links.marks[neighbour] = arc
                    links.following[slot] = head
                    head = slot
            slot = upcoming
    links.heads[kept] = head
    slot = head
    while slot != _NONE:
        links.marks[arcs.pairs[slot >> 1, 1 - (slot & 1)]] = _NONE
        slot = links.following[slot]
