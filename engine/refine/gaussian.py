"""Normalised Gaussian kernels over the pixels of an image, applied to several masks at once."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.refine.lanes import (
    Lanes,
    compiled,
    empty_rows,
    fill,
    load,
    make_lanes,
    multiply_add,
    prefetch,
    store,
)
from engine.refine.lattice import Chains, build_lattice
from engine.refine.threads import Cuts, Team

# Prefetch distance in rows. Single lanes fit into the cache and would only become slower.
_AHEAD = 32

# As in the reference; the sums that it is added to are far larger.
_NORM_EPSILON = np.float32(1e-20)


class Rows(NamedTuple):
    """A sparse matrix (P, M) in row order: `vertices` int32 (P, d + 1) and `weights` float32 (P, d + 1)."""

    vertices: NDArray[np.int32]
    weights: NDArray[np.float32]


class Columns(NamedTuple):
    """The same matrix in column order: entries starts[m]:starts[m + 1] of `pixels` (int32) and `weights`
    (float32) are column m."""

    starts: NDArray[np.int64]
    pixels: NDArray[np.int32]
    weights: NDArray[np.float32]


class GaussianKernel(NamedTuple):
    """A weighted kernel w N G N = A B A^T with its symmetric normalisation, N = diag(1 / sqrt(G 1)).

    G = S B S^T is the Gaussian on a permutohedral lattice: S holds barycentric weights, B is the blur along
    `chains`, and A = sqrt(w) N S. A is stored in row order for slicing and in column order for splatting, so
    that the order of summation does not depend on the threads.
    """

    rows: Rows
    columns: Columns
    chains: tuple[Chains, ...]

    @property
    def num_vertices(self) -> int:
        return len(self.columns.starts) - 1


def make_kernel(features: NDArray[np.float32], weight: float, team: Team) -> GaussianKernel:
    """The kernel exp(-|f_i - f_j|^2 / 2) of features float32 (d, P), in units of their standard deviations.

    Source: Krähenbühl & Koltun, "Parameter Learning and Convergent Inference for Dense Random Fields" (ICML
    2013), section 3.1, for the symmetric normalisation.
    """
    lattice = build_lattice(features, team)
    rows = Rows(lattice.vertices, lattice.weights)
    kernel = GaussianKernel(rows, _by_columns(rows, lattice.num_vertices), lattice.chains)
    num_pixels = features.shape[1]
    ones = np.ones((num_pixels, 1), np.float32)
    sums = splat_and_blur(kernel, ones, make_lanes(1), team)
    norms = np.empty(num_pixels, np.float32)
    team.run(_find_norms, team.cut(num_pixels), rows, sums, norms)
    norms *= np.float32(math.sqrt(weight))
    kernel.rows.weights[...] *= norms[:, None]
    kernel.columns.weights[...] *= norms[kernel.columns.pixels]
    return kernel


def splat_and_blur(
    kernel: GaussianKernel, beliefs: NDArray[np.float32], lanes: Lanes, team: Team
) -> NDArray[np.float32]:
    """B A^T beliefs, float32 (M, lanes), of beliefs (P, lanes); A times this is the filtered result."""
    values = empty_rows(kernel.num_vertices, len(lanes))
    team.run(_splat, _vertex_cuts(kernel, team), kernel.columns, beliefs, values, lanes)
    for chains in kernel.chains:
        team.run(_blur, team.cut(len(chains.order) - 1), chains, values, lanes)
    return values


def _vertex_cuts(kernel: GaussianKernel, team: Team) -> Cuts:
    """Cuts of the vertices that give every thread about the same number of entries of A."""
    starts = kernel.columns.starts
    inner = np.searchsorted(starts, team.cut(int(starts[-1]))[1:-1])
    return [0, *inner.tolist(), kernel.num_vertices]


@compiled
def _by_columns(rows: Rows, num_vertices: int) -> Columns:
    starts = np.zeros(num_vertices + 2, np.int64)
    for pixel in range(rows.vertices.shape[0]):
        for k in range(rows.vertices.shape[1]):
            starts[rows.vertices[pixel, k] + 2] += 1
    for vertex in range(num_vertices):
        starts[vertex + 2] += starts[vertex + 1]
    # starts[m + 1] is now the start of column m and advances to the column's end while entries are filled in.
    pixels = np.empty(rows.vertices.size, np.int32)
    weights = np.empty(rows.vertices.size, np.float32)
    for pixel in range(rows.vertices.shape[0]):
        for k in range(rows.vertices.shape[1]):
            vertex = rows.vertices[pixel, k]
            entry = starts[vertex + 1]
            starts[vertex + 1] += 1
            pixels[entry] = pixel
            weights[entry] = rows.weights[pixel, k]
    return Columns(starts[:-1], pixels, weights)


@compiled
def _find_norms(
    rows: Rows, values: NDArray[np.float32], norms: NDArray[np.float32], start: int, stop: int
) -> None:
    """Fill norms (P,) with 1 / sqrt(A values) for values (M, 1)."""
    for pixel in range(start, stop):
        total = np.float32(0)
        for k in range(rows.vertices.shape[1]):
            total += rows.weights[pixel, k] * values[rows.vertices[pixel, k], 0]
        norms[pixel] = np.float32(1) / np.sqrt(total + _NORM_EPSILON)


@compiled
def _splat(
    columns: Columns,
    beliefs: NDArray[np.float32],
    values: NDArray[np.float32],
    lanes: Lanes,
    start: int,
    stop: int,
) -> None:
    """Fill values = A^T beliefs for the vertices from `start` to `stop`."""
    last = len(columns.pixels) - 1
    for vertex in range(start, stop):
        total = fill(np.float32(0), lanes)
        for entry in range(columns.starts[vertex], columns.starts[vertex + 1]):
            if len(lanes) > 1:
                prefetch(beliefs, columns.pixels[min(entry + _AHEAD, last)], lanes)
            row = load(beliefs, columns.pixels[entry], lanes)
            total = multiply_add(columns.weights[entry], row, total)
        store(values, vertex, total)


@compiled
def _blur(chains: Chains, values: NDArray[np.float32], lanes: Lanes, start: int, stop: int) -> None:
    """value[i] += (value[i - 1] + value[i + 1]) / 2 along the chains of one axis, in place.

    Processes the chains whose first positions lie in start..stop - 1. The value after the end of a chain is
    read and multiplied by 0; another thread may be writing it, but it is finite.
    """
    last = len(chains.order) - 1
    while start < last and chains.link[start] > 0:
        start += 1
    while stop < last and chains.link[stop] > 0:
        stop += 1
    previous = fill(np.float32(0), lanes)
    current = load(values, chains.order[start], lanes)
    for i in range(start, stop):
        if len(lanes) > 1:
            prefetch(values, chains.order[min(i + _AHEAD, last)], lanes)
        following = load(values, chains.order[i + 1], lanes)
        blurred = multiply_add(chains.link[i], previous, current)
        blurred = multiply_add(chains.link[i + 1], following, blurred)
        store(values, chains.order[i], blurred)
        previous = current
        current = following
