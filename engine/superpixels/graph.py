"""Superpixels as a graph: neighbours, the minimum spanning tree of their colours, and merge heights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, kw_only=True, eq=False)
class SuperpixelGraph:
    """The minimum spanning tree of K superpixels.

    `mean_colours` is float32 (K, 3) in [0, 1]. `tree_edges` is int32 (K - 1, 2), pairs of neighbours in the
    order in which Kruskal's algorithm adds them, and `tree_weights` float32 (K - 1,) their |mu_m - mu_n|², in
    ascending order.
    """

    mean_colours: NDArray[np.float32]
    tree_edges: NDArray[np.int32]
    tree_weights: NDArray[np.float32]

    def merge_heights(self) -> NDArray[np.float32]:
        """Largest weight on the tree path between each pair of superpixels, float32 (K, K), diagonal 0.

        It is the height at which the two merge in single linkage, so one pass over the tree gives all pairs.
        """
        heights: NDArray[np.float32] = _merge_heights(self.tree_edges, self.tree_weights)
        return heights

    def affinities(self, alpha_2: float) -> NDArray[np.float32]:
        """psi = exp(-merge height / alpha_2), float32 (K, K) in [0, 1], 1 on the diagonal; alpha_2 > 0.

        Source: "Unsupervised Instance Segmentation with Superpixels", arXiv 2509.05352, section 3.2.
        """
        affinities: NDArray[np.float32] = np.exp(self.merge_heights() / np.float32(-alpha_2))
        return affinities


def build_graph(image_hwc: NDArray[np.float32], labels: NDArray[np.int32]) -> SuperpixelGraph:
    """The spanning tree of superpixels: labels int32 (H, W), 0..K-1, of an RGB image in [0, 1], (H, W, 3).

    Superpixels that share a pixel side are neighbours. Ties go to the pair with the smaller labels. Raises
    ValueError if the sizes differ or a label up to K - 1 has no pixel.

    >>> image = np.float32([[0, 0, 0.5, 1]])[..., None].repeat(3, axis=2)
    >>> graph = build_graph(image, np.int32([[0, 0, 1, 2]]))
    >>> graph.tree_edges.tolist(), graph.tree_weights.tolist()
    ([[0, 1], [1, 2]], [0.75, 0.75])
    >>> graph.merge_heights()[0].tolist()
    [0.0, 0.75, 0.75]
    """
    colours = mean_colours(image_hwc, labels)
    pairs = adjacent_pairs(labels)
    differences = colours[pairs[:, 0]] - colours[pairs[:, 1]]
    weights = np.einsum("ec,ec->e", differences, differences)
    order = np.argsort(weights, kind="stable")
    taken = order[_take_tree_edges(pairs[order], len(colours))]
    return SuperpixelGraph(mean_colours=colours, tree_edges=pairs[taken], tree_weights=weights[taken])


def mean_colours(image_hwc: NDArray[np.float32], labels: NDArray[np.int32]) -> NDArray[np.float32]:
    """Mean colours mu_k, float32 (K, 3), of the superpixels of labels (H, W). Raises ValueError."""
    if image_hwc.shape[:2] != labels.shape:
        raise ValueError(f"the image is {image_hwc.shape[:2]} and its labels are {labels.shape}")
    flat = labels.ravel()
    areas = np.bincount(flat)
    if not areas.all():
        raise ValueError(f"labels are 0..K-1 without gaps, {int(areas.argmin())} has no pixel")
    totals = [np.bincount(flat, weights=channel.ravel()) for channel in np.moveaxis(image_hwc, 2, 0)]
    return (np.stack(totals, axis=1) / areas[:, None]).astype(np.float32)


def adjacent_pairs(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Pairs of labels (H, W) that share a pixel side: int32 (E, 2), smaller first, in ascending order.

    >>> adjacent_pairs(np.int32([[0, 0, 1], [2, 2, 1]])).tolist()
    [[0, 1], [0, 2], [1, 2]]
    """
    first = np.concatenate([labels[:, :-1].ravel(), labels[:-1].ravel()]).astype(np.int64)
    second = np.concatenate([labels[:, 1:].ravel(), labels[1:].ravel()]).astype(np.int64)
    is_boundary = first != second
    low, high = np.minimum(first, second)[is_boundary], np.maximum(first, second)[is_boundary]
    num_labels = int(labels.max()) + 1
    keys = np.unique(low * num_labels + high)
    return np.stack([keys // num_labels, keys % num_labels], axis=1).astype(np.int32)


def resize_labels(labels: NDArray[np.int32], size: tuple[int, int]) -> NDArray[np.int32]:
    """Labels int32 (H, W) resampled to `size` = (height, width), nearest neighbour; labels may vanish.

    >>> resize_labels(np.int32([[0, 1]]), (2, 4)).tolist()
    [[0, 0, 1, 1], [0, 0, 1, 1]]
    """
    if labels.shape == size:
        return labels
    return np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))


def labels_at_stride(labels: NDArray[np.int32], stride: int) -> NDArray[np.int32]:
    """The most frequent label of every stride x stride block, int32 (ceil(H / stride), ceil(W / stride)).

    Blocks at the right and lower sides may be smaller. Ties go to the smaller label. Labels are not
    renumbered, although some may vanish.

    >>> labels_at_stride(np.int32([[0, 0, 1], [0, 2, 2]]), 2).tolist()
    [[0, 1]]
    """
    majority: NDArray[np.int32] = _block_majority(labels, stride)
    return majority


@njit(cache=True)  # type: ignore[untyped-decorator]
def _root(parents: NDArray[np.int64], member: int) -> int:
    """Representative of a member's set, with path halving."""
    while parents[member] != member:
        parents[member] = parents[parents[member]]
        member = parents[member]
    return member


@njit(cache=True)  # type: ignore[untyped-decorator]
def _take_tree_edges(pairs: NDArray[np.int32], num_labels: int) -> NDArray[np.int64]:
    """Kruskal's algorithm: positions, in order, of the pairs that connect two separate components."""
    parents = np.arange(num_labels)
    taken = np.empty(max(num_labels - 1, 0), np.int64)
    count = 0
    for position in range(len(pairs)):
        first, second = _root(parents, pairs[position, 0]), _root(parents, pairs[position, 1])
        if first != second:
            parents[second] = first
            taken[count] = position
            count += 1
    return taken[:count]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _merge_heights(edges: NDArray[np.int32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Merge heights: each edge, lightest first, joins two sets at its weight."""
    num_labels = len(edges) + 1
    heights = np.zeros((num_labels, num_labels), np.float32)
    parents = np.arange(num_labels)
    # Sets as linked lists: `following` leads from a root through its members, `lasts` holds each list's end.
    following = np.full(num_labels, -1)
    lasts = np.arange(num_labels)
    for edge in range(len(edges)):
        first, second = _root(parents, edges[edge, 0]), _root(parents, edges[edge, 1])
        member = first
        while member >= 0:
            other = second
            while other >= 0:
                heights[member, other] = weights[edge]
                heights[other, member] = weights[edge]
                other = following[other]
            member = following[member]
        parents[second] = first
        following[lasts[first]] = second
        lasts[first] = lasts[second]
    return heights


@njit(cache=True)  # type: ignore[untyped-decorator]
def _block_majority(labels: NDArray[np.int32], stride: int) -> NDArray[np.int32]:
    """`labels_at_stride`."""
    height, width = labels.shape
    majority = np.empty((-(-height // stride), -(-width // stride)), np.int32)
    for row in range(majority.shape[0]):
        for column in range(majority.shape[1]):
            top, left = row * stride, column * stride
            block = np.sort(labels[top : top + stride, left : left + stride].copy().reshape(-1))
            best_count, count = 0, 0
            for position in range(len(block)):
                count = count + 1 if position > 0 and block[position] == block[position - 1] else 1
                if count > best_count:
                    best_count, majority[row, column] = count, block[position]
    return majority
