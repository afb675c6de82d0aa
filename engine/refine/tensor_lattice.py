"""Permutohedral lattices and Gaussian kernels in torch, for several images at once, on any device.

The lattice of engine.refine.lattice, built by sorting keys instead of hashing them. Splat, blur and slice are
weighted sums of rows, which torch's `embedding_bag` computes without temporaries and in the order of its
indices, so results are bit-identical in every run, unlike those of atomic additions.

Source: as in engine.refine.lattice and engine.refine.gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.errors import ConfigurationError

# Maximum number of terms that one GPU thread sums: a vertex in a flat part of an image collects ten thousand
# pixels, whose sum is computed in pieces.
_PIECE = 128
# As in the reference; the sums that it is added to are far larger.
_NORM_EPSILON = 1e-20


class Sums(NamedTuple):
    """A sparse matrix whose product with rows (N, lanes) is a single kernel launch.

    Row i is the sum of rows[indices[j]] * weights[j] for starts[i] <= j < starts[i + 1]; int32 and float32.
    """

    indices: Tensor
    weights: Tensor
    starts: Tensor

    def __matmul__(self, rows: Tensor) -> Tensor:
        # Mode 0 is the sum; the last of the starts is the end of the last row.
        total: Tensor = torch.embedding_bag(
            rows, self.indices, self.starts, False, 0, False, self.weights, True
        )[0]
        return total


class TensorKernel(NamedTuple):
    """The normalised kernel w N G N = A B A^T, see `engine.refine.gaussian.GaussianKernel`.

    `splat` is A^T in two factors, `blur` holds one factor of B per axis, `slice` is A.
    """

    splat: tuple[Sums, Sums]
    blur: tuple[Sums, ...]
    slice: Sums

    def splat_and_blur(self, beliefs: Tensor) -> Tensor:
        """B A^T beliefs (M, lanes) of beliefs (B * P, lanes); `slice` times this is the filtered result."""
        values = beliefs
        for sums in (*self.splat, *self.blur):
            values = sums @ values
        return values


class _Geometry(NamedTuple):
    """`engine.refine.lattice.Geometry` for several images; the keys of one image are below `span`."""

    scales: tuple[float, ...]
    origin: int
    strides: tuple[int, ...]
    span: int


def make_kernel(features: Tensor, ranges: Sequence[float], weight: float) -> TensorKernel:
    """The kernel exp(-|f_i - f_j|^2 / 2) within each of B images, and 0 between pixels of different images.

    `features` is float32 (B, d, P), in units of their standard deviations, each between 0 and its entry of
    `ranges`. The host waits for the device once, to learn the number of vertices. Raises ConfigurationError
    if the ranges span more lattice points than 62 bits can number.
    """
    num_images, dimension, num_pixels = features.shape
    geometry = _lay_out(ranges, num_images)
    keys, weights = _find_simplices(features, geometry)
    sorted_keys, order = keys.flatten().sort(stable=True)
    is_first = torch.ones_like(sorted_keys, dtype=torch.bool)
    torch.ne(sorted_keys[1:], sorted_keys[:-1], out=is_first[1:])
    firsts = is_first.nonzero()[:, 0]
    vertices = torch.empty_like(order).scatter_(0, order, is_first.cumsum(0) - 1)
    blur = tuple(_blur_along(sorted_keys[firsts], step) for step in _steps(geometry))
    corners = dimension + 1
    rows = _equal_sums(vertices.reshape(-1, corners), weights)
    kernel = TensorKernel(_splat(order, corners, firsts, weights.flatten()[order]), blur, rows)
    ones = torch.ones((num_images * num_pixels, 1), dtype=torch.float32, device=features.device)
    norms = (rows @ kernel.splat_and_blur(ones) + _NORM_EPSILON).rsqrt() * math.sqrt(weight)
    weights = weights * norms
    return TensorKernel(
        splat=_splat(order, corners, firsts, weights.flatten()[order]),
        blur=blur,
        slice=rows._replace(weights=weights.flatten()),
    )


def _lay_out(ranges: Sequence[float], num_images: int) -> _Geometry:
    """Scales for a standard deviation of 1, and strides that give each reachable point its own key."""
    dimension = len(ranges)
    deviation = math.sqrt(2 / 3) * (dimension + 1)
    scales = [deviation / math.sqrt((i + 1) * (i + 2)) for i in range(dimension)]
    high = [extent * scale for extent, scale in zip(ranges, scales, strict=True)]
    margin = 4 * (dimension + 1)
    strides, origin, stride = [], 0, 1
    for i in range(dimension):
        first = math.floor(-i * high[i - 1] if i > 0 else 0.0) - margin
        last = math.ceil(sum(high[i:])) + margin
        strides.append(stride)
        origin -= first * stride
        stride *= last - first + 1
    if stride * num_images >= 2**62:
        raise ConfigurationError(
            f"the CRF's standard deviations are too small for {num_images} images at once: one feature spans "
            f"{max(high):.3g} lattice cells; raise gaussian_sigma_xy, bilateral_sigma_xy or "
            "bilateral_sigma_rgb"
        )
    return _Geometry(tuple(scales), origin, (*strides, 0), stride)


def _steps(geometry: _Geometry) -> list[int]:
    """Difference of keys of one step along each axis: all coordinates fall by 1, one rises by d instead."""
    total = sum(geometry.strides)
    return [len(geometry.strides) * stride - total for stride in geometry.strides]


def _find_simplices(features: Tensor, geometry: _Geometry) -> tuple[Tensor, Tensor]:
    """Keys int64 and barycentric weights float32, (B * P, d + 1), of the corners around each pixel."""
    num_images, dimension, _ = features.shape
    corners = dimension + 1
    elevated = _elevate(features, geometry.scales)
    multiples = torch.round(elevated / corners)
    residuals = elevated - multiples * corners
    # Corner coordinates must sum to 0: if they do not, those with the largest rounding errors are changed.
    excess = multiples.sum(dim=-1, keepdim=True).to(torch.int64)
    ranks = residuals.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) + excess
    wraps = (ranks < 0).to(torch.int64) - (ranks > dimension).to(torch.int64)
    multiples = multiples.to(torch.int64) + wraps
    by_rank = (ranks + corners * wraps).argsort(dim=-1)
    residuals = (elevated - (multiples * corners).to(torch.float32)).gather(-1, by_rank) / corners
    first = 1 + residuals[..., -1:] - residuals[..., :1]
    weights = torch.cat([first, (residuals[..., :-1] - residuals[..., 1:]).flip(-1)], dim=-1)
    strides = torch.tensor(geometry.strides, dtype=torch.int64, device=features.device)
    images = torch.arange(num_images, device=features.device)[:, None, None] * geometry.span
    keys = (multiples * strides).sum(dim=-1, keepdim=True) * corners + images + geometry.origin
    # Corner k is k higher in every coordinate, but d + 1 lower in the k coordinates of the highest ranks.
    lowered = strides[by_rank].flip(-1).cumsum(dim=-1)[..., :-1]
    rises = torch.arange(1, corners, device=features.device) * strides.sum()
    keys = torch.cat([keys, keys + rises - corners * lowered], dim=-1)
    return keys.reshape(-1, corners), weights.reshape(-1, corners)


def _elevate(features: Tensor, scales: tuple[float, ...]) -> Tensor:
    """Features (B, d, P) elevated to the plane of coordinate sum 0: (B, P, d + 1)."""
    partial_sum = torch.zeros_like(features[:, 0])
    coordinates = []
    for i in range(len(scales), 0, -1):
        scaled = features[:, i - 1] * scales[i - 1]
        coordinates.append(partial_sum - i * scaled)
        partial_sum = partial_sum + scaled
    return torch.stack([partial_sum, *reversed(coordinates)], dim=-1)


def _equal_sums(indices: Tensor, weights: Tensor) -> Sums:
    """Sums with the same number of terms in every row: indices and weights (rows, terms)."""
    num_rows, num_terms = indices.shape
    starts = torch.arange(0, (num_rows + 1) * num_terms, num_terms, dtype=torch.int32, device=indices.device)
    return Sums(indices.flatten().to(torch.int32), weights.flatten(), starts)


def _blur_along(vertex_keys: Tensor, step: int) -> Sums:
    """value[i] + (value[i - 1] + value[i + 1]) / 2 along an axis; a step adds `step` to sorted keys (M,)."""
    own = torch.arange(len(vertex_keys), device=vertex_keys.device)
    indices, weights = [own], [torch.ones_like(own, dtype=torch.float32)]
    for neighbour_keys in (vertex_keys - step, vertex_keys + step):
        found = torch.searchsorted(vertex_keys, neighbour_keys).clamp_(max=len(vertex_keys) - 1)
        exists = vertex_keys[found] == neighbour_keys
        indices.append(torch.where(exists, found, own))
        weights.append(exists.to(torch.float32) / 2)
    return _equal_sums(torch.stack(indices, dim=1), torch.stack(weights, dim=1))


def _splat(order: Tensor, corners: int, firsts: Tensor, weights: Tensor) -> tuple[Sums, Sums]:
    """A^T as two factors: sums over pieces of each vertex's pixels, then over the pieces of each vertex.

    `order` sorts the (pixel, corner) entries by vertex, `weights` are in that order, and `firsts` (M,) is the
    first entry of each vertex. Pieces never span two vertices, so images do not change each other's bits.
    """
    num_entries = len(order)
    ends = torch.cat([firsts[1:], firsts.new_full((1,), num_entries)])
    num_pieces = (ends - firsts + _PIECE - 1) // _PIECE
    piece_stops = num_pieces.cumsum(0)
    piece_starts = torch.nn.functional.pad(piece_stops, (1, 0))
    # An upper bound, with empty pieces at the end, so that the host need not wait for the number of pieces.
    max_pieces = len(firsts) + num_entries // _PIECE
    pieces = torch.arange(max_pieces, device=order.device)
    vertices = torch.searchsorted(piece_stops, pieces, right=True).clamp_(max=len(firsts) - 1)
    starts = firsts[vertices] + (pieces - piece_starts[vertices]) * _PIECE
    starts = torch.where(pieces < piece_stops[-1], starts, num_entries)
    starts = torch.nn.functional.pad(starts, (0, 1), value=num_entries)
    by_piece = Sums((order // corners).to(torch.int32), weights, starts.to(torch.int32))
    ones = torch.ones(max_pieces, dtype=torch.float32, device=order.device)
    by_vertex = Sums(pieces.to(torch.int32), ones, piece_starts.to(torch.int32))
    return by_piece, by_vertex
