"""Compiled loops of boundary detection: Gaussian smoothing and the sums of gradient products.

A boundary tensor is float32 (H, W, 3): the entries (xx, xy, yy) of a symmetric 2 x 2 matrix T at every pixel,
such that the squared strength of a boundary with unit normal n is n' T n.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Gaussians are truncated where they fall to about a hundredth of their peak.
_TRUNCATE_SIGMAS = 3.0

_HALF = np.float32(0.5)


def smooth(plane: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    """Gaussian smoothing of a plane (H, W), which is mirrored at its sides.

    >>> (1000 * smooth(np.float32([[0, 0, 0, 1, 0, 0, 0]]), 0.5)).round().tolist()
    [[0.0, 0.0, 106.0, 787.0, 106.0, 0.0, 0.0]]
    """
    radius = max(1, int(np.ceil(_TRUNCATE_SIGMAS * sigma_px)))
    offsets = np.arange(radius + 1)
    half_kernel = np.exp(-0.5 * (offsets / sigma_px) ** 2)
    half_kernel /= half_kernel[0] + 2 * half_kernel[1:].sum()
    smoothed: NDArray[np.float32] = _convolve(plane, half_kernel.astype(np.float32))
    return smoothed


@njit(cache=True)  # type: ignore[untyped-decorator]
def _convolve(plane: NDArray[np.float32], half_kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Separable convolution with a symmetric kernel, given from its centre outwards: columns, then rows."""
    height, width = plane.shape
    radius = len(half_kernel) - 1
    output = np.empty((height, width), np.float32)
    padded = np.empty(width + 2 * radius, np.float32)
    summed = padded[radius : radius + width]
    for y in range(height):
        # Loops over views of rows are vectorised, those over two indices are not.
        row, weight = plane[y], half_kernel[0]
        for x in range(width):
            summed[x] = row[x] * weight
        for offset in range(1, radius + 1):
            above = y - offset if y >= offset else min(offset - y - 1, height - 1)
            below = y + offset if y + offset < height else max(2 * height - 1 - y - offset, 0)
            upper, lower, weight = plane[above], plane[below], half_kernel[offset]
            for x in range(width):
                summed[x] += weight * (upper[x] + lower[x])
        for offset in range(radius):
            padded[radius - 1 - offset] = summed[min(offset, width - 1)]
            padded[radius + width + offset] = summed[max(width - 1 - offset, 0)]
        smoothed, weight = output[y], half_kernel[0]
        for x in range(width):
            smoothed[x] = summed[x] * weight
        for offset in range(1, radius + 1):
            left, right, weight = padded[radius - offset :], padded[radius + offset :], half_kernel[offset]
            for x in range(width):
                smoothed[x] += weight * (left[x] + right[x])
    return output


@njit(cache=True)  # type: ignore[untyped-decorator]
def add_gradients(plane: NDArray[np.float32], weight: float, tensor: NDArray[np.float32]) -> None:
    """Add weight * (gradient of the plane)(gradient)' to the tensor, in place; gradients are per pixel.

    Source: Di Zenzo, "A note on the gradient of a multi-image", CVGIP 1986.
    """
    height, width = plane.shape
    scale = np.float32(weight)
    for y in range(height):
        above, below = max(y - 1, 0), min(y + 1, height - 1)
        for x in range(width):
            along_x = _HALF * (plane[y, min(x + 1, width - 1)] - plane[y, max(x - 1, 0)])
            along_y = _HALF * (plane[below, x] - plane[above, x])
            tensor[y, x, 0] += scale * along_x * along_x
            tensor[y, x, 1] += scale * along_x * along_y
            tensor[y, x, 2] += scale * along_y * along_y


@njit(cache=True)  # type: ignore[untyped-decorator]
def add_relative_gradients(plane: NDArray[np.float32], weight: float, tensor: NDArray[np.float32]) -> None:
    """Add weight * (gradient of the plane)(gradient)' / plane to the tensor: one bin of a χ² distance.

    The plane holds the share h of one histogram bin, in [0, 1]. The shares in the half-windows on both sides
    of a boundary differ by 2 d = 2 n'∇h, and the bin's term of χ² is (2 d)² / (2 h) ∝ n' (∇h ∇h' / h) n. The
    divisor is h + 0.01, so that almost empty bins hardly count.

    Source: Martin, Fowlkes, Malik, "Learning to detect natural image boundaries", PAMI 2004, eq. 2, for small
    differences.
    """
    height, width = plane.shape
    scale = np.float32(weight)
    for y in range(height):
        above, below = max(y - 1, 0), min(y + 1, height - 1)
        for x in range(width):
            along_x = _HALF * (plane[y, min(x + 1, width - 1)] - plane[y, max(x - 1, 0)])
            along_y = _HALF * (plane[below, x] - plane[above, x])
            relative = scale / (plane[y, x] + np.float32(0.01))
            tensor[y, x, 0] += relative * along_x * along_x
            tensor[y, x, 1] += relative * along_x * along_y
            tensor[y, x, 2] += relative * along_y * along_y


@njit(cache=True)  # type: ignore[untyped-decorator]
def add_doubled(coarse: NDArray[np.float32], tensor: NDArray[np.float32]) -> None:
    """Add a tensor of half the size, interpolated bilinearly between pixel centres, in place."""
    height, width = tensor.shape[:2]
    for y in range(height):
        top = max((y - 1) // 2, 0)
        bottom = min((y + 1) // 2, coarse.shape[0] - 1)
        top_share = np.float32(0.75 if y % 2 else 0.25)
        for x in range(width):
            left = max((x - 1) // 2, 0)
            right = min((x + 1) // 2, coarse.shape[1] - 1)
            left_share = np.float32(0.75 if x % 2 else 0.25)
            for entry in range(3):
                upper = coarse[top, right, entry]
                upper += left_share * (coarse[top, left, entry] - upper)
                lower = coarse[bottom, right, entry]
                lower += left_share * (coarse[bottom, left, entry] - lower)
                tensor[y, x, entry] += lower + top_share * (upper - lower)


@njit(cache=True)  # type: ignore[untyped-decorator]
def largest_strength(tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    """Boundary strength in the strongest direction (H, W): the root of the tensor's larger eigenvalue."""
    height, width = tensor.shape[:2]
    strength = np.empty((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            xx, xy, yy = tensor[y, x, 0], tensor[y, x, 1], tensor[y, x, 2]
            spread = np.sqrt(_HALF * _HALF * (xx - yy) * (xx - yy) + xy * xy)
            strength[y, x] = np.sqrt(_HALF * (xx + yy) + spread)
    return strength
