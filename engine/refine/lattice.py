"""The permutohedral lattice: a sparse grid in feature space on which Gaussian filters are fast.

The lattice divides d-dimensional feature space into simplices with d + 1 vertices. Pixels are accumulated at
the vertices of their simplex (splat), vertices are averaged with their neighbours along d + 1 axes (blur),
and pixels interpolate the result (slice). Simplices depend on the features alone, so one lattice serves any
number of values per pixel and any number of passes.

Source: Adams, Baek & Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice" (Eurographics
2010), sections 2 and 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.errors import ConfigurationError
from engine.refine.lanes import compiled
from engine.refine.threads import Team

_HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Fibonacci hashing
_NO_KEY = np.int64(-1)  # keys are never negative


class Chains(NamedTuple):
    """The lines of vertices along one axis, concatenated; vertices without neighbours are left out.

    `order` is int32 (K + 1,): the vertices, and one more entry that makes reading ahead safe. `link` is
    float32 (K + 1,): the weight 1/2 between positions i - 1 and i, or 0 at the start of a line.
    """

    order: NDArray[np.int32]
    link: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Lattice:
    """The simplices of P pixels among M lattice vertices.

    `vertices` is int32 (P, d + 1) and `weights` float32 (P, d + 1), the barycentric coordinates, which sum to
    1; `chains` holds the d + 1 axes. Vertices are numbered in the order of their first pixels.
    """

    num_vertices: int
    vertices: NDArray[np.int32]
    weights: NDArray[np.float32]
    chains: tuple[Chains, ...]


class Geometry(NamedTuple):
    """The maps from features to lattice coordinates and from the coordinates of a point to its integer key.

    `scales` holds the factor of each feature. A key is origin + sum of coordinate * stride; `strides`, int64
    (d + 1,), ends in 0, as the last coordinate follows from the others. Keys are linear in the coordinates,
    so a neighbour's key differs by a constant.
    """

    scales: tuple[np.float32, ...]
    origin: int
    strides: NDArray[np.int64]


def build_lattice(features: NDArray[np.float32], team: Team) -> Lattice:
    """The lattice of features float32 (d, P), in units of the Gaussian's standard deviation; P >= 1.

    Raises ConfigurationError if the features span more lattice points than 62 bits can number.
    """
    dimension, num_pixels = features.shape
    corners = dimension + 1
    geometry = _lay_out(features)
    keys = np.empty((num_pixels, corners), np.int64)
    weights = np.empty((num_pixels, corners), np.float32)
    team.run(_find_simplices, team.cut(num_pixels), features, geometry, keys, weights)
    vertices = np.empty((num_pixels, corners), np.int32)
    # Initial capacity: one vertex per two pixels; photographs at the usual deviations have fewer.
    vertex_keys = _number_keys(keys, (num_pixels + 2 * corners).bit_length(), vertices)
    by_key = np.argsort(vertex_keys).astype(np.int32)
    sorted_keys = vertex_keys[by_key]
    # One step along axis j: every coordinate falls by 1, coordinate j rises by d instead.
    steps = [corners * int(stride) - int(geometry.strides.sum()) for stride in geometry.strides]
    chains = team.run_all([partial(_find_chains, sorted_keys, by_key, step) for step in steps])
    return Lattice(
        num_vertices=len(vertex_keys),
        vertices=vertices,
        weights=weights,
        chains=tuple(Chains(order, link) for order, link in chains),
    )


def _lay_out(features: NDArray[np.float32]) -> Geometry:
    """Scales for a standard deviation of 1, and strides that give each reachable point its own key.

    The range of a coordinate is an interval bound of the elevation plus a margin for corners and neighbours.
    """
    dimension = len(features)
    # Splat, blur and slice together have the variance 2/3 (d + 1)^2 in the lattice's units (section 3).
    deviation = math.sqrt(2 / 3) * (dimension + 1)
    scales = tuple(np.float32(deviation / math.sqrt((i + 1) * (i + 2))) for i in range(dimension))
    low = [float(row.min()) * float(scale) for row, scale in zip(features, scales, strict=True)]
    high = [float(row.max()) * float(scale) for row, scale in zip(features, scales, strict=True)]
    margin = 4 * (dimension + 1)
    strides, origin, stride = [], 0, 1
    for i in range(dimension):
        lowest = sum(low[i:]) - (i * high[i - 1] if i > 0 else 0.0)
        highest = sum(high[i:]) - (i * low[i - 1] if i > 0 else 0.0)
        first, last = math.floor(lowest) - margin, math.ceil(highest) + margin
        strides.append(stride)
        origin -= first * stride
        stride *= last - first + 1
    if stride >= 2**62:
        raise ConfigurationError(
            f"the CRF's standard deviations are too small for this image: one feature spans {max(high):.3g} "
            "lattice cells; raise gaussian_sigma_xy, bilateral_sigma_xy or bilateral_sigma_rgb"
        )
    return Geometry(scales, origin, np.array([*strides, 0], np.int64))


@compiled
def _find_simplices(
    features: NDArray[np.float32],
    geometry: Geometry,
    keys: NDArray[np.int64],
    weights: NDArray[np.float32],
    start: int,
    stop: int,
) -> None:
    """Fill keys and barycentric weights (P, d + 1) of the corners of the simplex around each pixel."""
    dimension = len(geometry.scales)
    corners = dimension + 1
    elevated = np.empty(corners, np.float32)
    residual = np.empty(corners, np.float32)
    multiple = np.empty(corners, np.int64)
    rank = np.empty(corners, np.int64)
    sorted_residual = np.empty(corners, np.float32)
    sorted_stride = np.empty(corners, np.int64)
    reciprocal = np.float32(1 / corners)
    all_strides = geometry.strides.sum()
    for pixel in range(start, stop):
        # Elevation to the plane of coordinate sum 0: the product with the basis matrix, in linear time.
        partial_sum = np.float32(0)
        for i in range(dimension, 0, -1):
            scaled = features[i - 1, pixel] * geometry.scales[i - 1]
            elevated[i] = partial_sum - np.float32(i) * scaled
            partial_sum += scaled
        elevated[0] = partial_sum
        # The nearest point whose coordinates are multiples of d + 1; their sum may not be 0 ...
        excess = np.int64(0)
        for i in range(corners):
            rounded = math.floor(elevated[i] * reciprocal + np.float32(0.5))
            multiple[i] = np.int64(rounded) * corners
            excess += np.int64(rounded)
            residual[i] = elevated[i] - np.float32(rounded) * np.float32(corners)
        # ... and is corrected where residuals are most extreme: those ranks leave 0..d and wrap around.
        for i in range(corners):
            rank[i] = excess
        for i in range(dimension):
            for j in range(i + 1, corners):
                below = np.int64(residual[i] < residual[j])  # branchless: the outcome is unpredictable
                rank[i] += below
                rank[j] += 1 - below
        key = np.int64(geometry.origin)
        for i in range(corners):
            wrap = (np.int64(rank[i] < 0) - np.int64(rank[i] > dimension)) * corners
            position = rank[i] + wrap
            sorted_residual[position] = (residual[i] - np.float32(wrap)) * reciprocal
            sorted_stride[position] = geometry.strides[i]
            key += (multiple[i] + wrap) * geometry.strides[i]
        # Corner k is that point plus k everywhere, less d + 1 at the k coordinates of the highest ranks.
        keys[pixel, 0] = key
        weights[pixel, 0] = np.float32(1) + sorted_residual[dimension] - sorted_residual[0]
        for k in range(1, corners):
            key += all_strides - corners * sorted_stride[corners - k]
            keys[pixel, k] = key
            weights[pixel, k] = sorted_residual[dimension - k] - sorted_residual[corners - k]


@compiled
def _find_slot(table: NDArray[np.int64], key: int, shift: np.uint64) -> np.int64:
    """The slot of a hash table (2^b, 2) that holds `key`, or the free slot for it; shift = 64 - b."""
    slot = np.int64((np.uint64(key) * _HASH_MULTIPLIER) >> shift)
    while table[slot, 0] != key and table[slot, 0] != _NO_KEY:
        slot = (slot + 1) & (len(table) - 1)
    return slot


@compiled
def _number_keys(keys: NDArray[np.int64], table_bits: int, numbers: NDArray[np.int32]) -> NDArray[np.int64]:
    """Number the distinct keys in order of appearance: fills `numbers`, shaped like `keys`, returns the keys.

    The hash table of (key, number) starts with 2^table_bits slots, at least twice the keys of a pixel, and
    doubles when it is half full.
    """
    shift = np.uint64(64 - table_bits)
    table = np.full((1 << table_bits, 2), _NO_KEY, np.int64)
    count = 0
    for pixel in range(keys.shape[0]):
        for k in range(keys.shape[1]):
            key = keys[pixel, k]
            slot = _find_slot(table, key, shift)
            if table[slot, 0] == _NO_KEY:
                table[slot, 0] = key
                table[slot, 1] = count
                count += 1
            numbers[pixel, k] = table[slot, 1]
        if 2 * (count + keys.shape[1]) > len(table):
            shift -= np.uint64(1)
            larger = np.full((2 * len(table), 2), _NO_KEY, np.int64)
            for old in range(len(table)):
                if table[old, 0] != _NO_KEY:
                    new = _find_slot(larger, table[old, 0], shift)
                    larger[new, 0] = table[old, 0]
                    larger[new, 1] = table[old, 1]
            table = larger
    distinct = np.empty(count, np.int64)
    for i in range(len(table)):
        if table[i, 0] != _NO_KEY:
            distinct[table[i, 1]] = table[i, 0]
    return distinct


@compiled
def _find_chains(
    sorted_keys: NDArray[np.int64], vertices: NDArray[np.int32], step: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """`order` and `link` of the chains along the axis whose successors have keys larger by `step`.

    `vertices` int32 (M,) holds the vertices in the order of their keys. Two pointers move along the sorted
    keys, one finding the other's successor, which reads memory sequentially, unlike a hash table.
    """
    count = len(sorted_keys)
    successor = np.full(count, -1, np.int32)
    is_first = np.ones(count, np.bool_)
    ahead = 0
    for i in range(count):
        target = sorted_keys[i] + step
        while ahead < count and sorted_keys[ahead] < target:
            ahead += 1
        if ahead < count and sorted_keys[ahead] == target:
            successor[vertices[i]] = vertices[ahead]
            is_first[vertices[ahead]] = False
    order = np.zeros(count + 1, np.int32)
    link = np.zeros(count + 1, np.float32)
    length = 0
    for vertex in range(count):
        if is_first[vertex] and successor[vertex] >= 0:
            member = np.int64(vertex)
            while member >= 0:
                order[length] = member
                member = np.int64(successor[member])
                length += 1
                link[length] = np.float32(0.5) if member >= 0 else np.float32(0)
    return order[: length + 1].copy(), link[: length + 1].copy()
