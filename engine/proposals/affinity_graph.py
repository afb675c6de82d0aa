"""Graphs over a grid of patches, with an edge for each pair of patches at one of the given offsets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.errors import ImageError
from engine.proposals.offsets import Offset
from engine.types import Reason


def grid_edges(
    size: tuple[int, int], offsets: Sequence[Offset]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Edges of a grid of (height, width) patches, numbered in reading order: uv (E, 2) and classes (E,).

    Edges are ordered by their offset (rows, columns), whose index `classes` holds, then by their first patch.
    Offsets larger than the grid have no edges. Raises ValueError if an offset is zero or repeated, also with
    the opposite sign.

    >>> uv, classes = grid_edges((2, 3), [(0, 1), (1, -1)])
    >>> uv.tolist(), classes.tolist()
    ([[0, 1], [1, 2], [3, 4], [4, 5], [1, 3], [2, 4]], [0, 0, 0, 0, 1, 1])
    """
    directionless = {max(offset, (-offset[0], -offset[1])) for offset in offsets}
    if len(directionless) < len(offsets) or (0, 0) in directionless:
        raise ValueError(f"offsets must be distinct up to their sign and not zero, got {offsets}")
    nodes = np.arange(size[0] * size[1]).reshape(size)
    pairs = []
    for offset in offsets:
        near, far = _overlap(offset)
        pairs.append(np.stack([nodes[near].ravel(), nodes[far].ravel()], axis=1))
    uv = np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)
    return uv, np.repeat(np.arange(len(offsets)), [len(pair) for pair in pairs])


def edge_affinities(
    features_bhwc: torch.Tensor, offsets: Sequence[Offset], names: Sequence[str]
) -> torch.Tensor:
    """Cosines along the edges of `grid_edges`, float32 (B, E) on the features' device, in [-1, 1].

    `features_bhwc` (B, h, w, C) are of any floating type and length; a zero vector has cosine 0 with all.
    Raises ImageError with the image's name if features are NaN or infinite.
    """
    features = features_bhwc.float()
    lengths = torch.linalg.vector_norm(features, dim=3, keepdim=True)
    finite = (
        torch.isfinite(lengths).flatten(start_dim=1).all(dim=1)
    )  # a finite length implies a finite feature
    if not bool(finite.all()):
        name = names[int(finite.logical_not().nonzero()[0])]
        raise ImageError(Reason.NON_FINITE, f"features of image {name!r} are not finite")
    unit = features / lengths.clamp_min(torch.finfo(torch.float32).tiny)
    cosines = [features.new_zeros((len(features), 0))]
    for offset in offsets:
        near, far = _overlap(offset)
        product = unit[(slice(None), *near)] * unit[(slice(None), *far)]
        cosines.append(product.sum(dim=3).flatten(start_dim=1))
    return torch.cat(cosines, dim=1)


def _overlap(offset: Offset) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices (rows, columns) of the grid that hold the first and the second ends of an offset's edges."""
    near, far = zip(*(_overlap_along(step) for step in offset), strict=True)
    return near, far


def _overlap_along(step: int) -> tuple[slice, slice]:
    if step == 0:
        return slice(None), slice(None)
    ahead, behind = slice(abs(step), None), slice(None, -abs(step))
    return (behind, ahead) if step > 0 else (ahead, behind)
