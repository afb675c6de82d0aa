"""The numba backend: mean-field inference for all masks of an image at once.

With two labels, a pixel's probabilities sum to 1, so one number describes them: the belief
b = Q(foreground) - Q(background). With Potts weights w, normalised Gaussian kernels G and unary energies
-log softmax(1 - m, m), whose difference is u = +1 inside the coarse mask and -1 outside, a mean-field step is

    b <- tanh((u + sum_k w_k G_k b) / 2).

Only b is filtered, one channel per mask, on lattices that all masks and steps share.

Source: Krähenbühl & Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials"
(NeurIPS 2011), eq. 3 and algorithm 1.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from engine.refine.config import CrfConfig
from engine.refine.gaussian import GaussianKernel, Rows, make_kernel, splat_and_blur
from engine.refine.lanes import (
    Lanes,
    add,
    clamp,
    compiled,
    divide,
    empty_rows,
    fill,
    load,
    make_lanes,
    multiply,
    multiply_add,
    store,
)
from engine.refine.threads import Team

# Numbers of masks that are filtered together; each width is compiled separately.
_LANE_WIDTHS = (1, 8, 16)


def refine_masks(
    image_hwc: NDArray[np.uint8], masks: NDArray[np.bool_], config: CrfConfig, num_threads: int
) -> NDArray[np.bool_]:
    """Masks bool (N, H, W) of an image uint8 (H, W, 3) after the CRF; ties are background. N, H, W >= 1.

    A mask's result depends neither on the other masks nor on `num_threads`.
    """
    num_masks, height, width = masks.shape
    flat_masks = np.ascontiguousarray(masks).reshape(num_masks, -1)
    refined = np.empty_like(flat_masks)
    smoothness = _smoothness_kernel(height, width, config.gaussian_sigma_xy, config.gaussian_weight)
    with Team(num_threads) as team:
        appearance = make_kernel(_appearance_features(image_hwc, config), config.bilateral_weight, team)
        start = 0
        while start < num_masks:
            lanes = make_lanes(_lane_width(num_masks - start))
            group = slice(start, start + len(lanes))
            beliefs = _infer(flat_masks[group], (smoothness, appearance), config.steps, lanes, team)
            team.run(_decide, team.cut(height * width), beliefs, refined[group])
            start += len(lanes)
    return refined.reshape(masks.shape)


def _lane_width(num_masks: int) -> int:
    """The narrowest vector that holds the masks, or the widest available.

    >>> [_lane_width(n) for n in (1, 2, 9, 40)]
    [1, 8, 16, 16]
    """
    return next((width for width in _LANE_WIDTHS if width >= num_masks), _LANE_WIDTHS[-1])


@lru_cache(maxsize=1)
def _smoothness_kernel(height: int, width: int, sigma_xy: float, weight: float) -> GaussianKernel:
    """The kernel on positions. It depends only on the image's size, which seldom changes between images."""
    with Team(1) as team:
        return make_kernel(_positions(height, width, sigma_xy).reshape(2, -1), weight, team)


def _positions(height: int, width: int, sigma_xy: float) -> NDArray[np.float32]:
    """Column and row of every pixel, float32 (2, H, W), in units of `sigma_xy`."""
    rows, columns = np.indices((height, width), np.float32)
    return np.stack([columns, rows]) / np.float32(sigma_xy)


def _appearance_features(image_hwc: NDArray[np.uint8], config: CrfConfig) -> NDArray[np.float32]:
    """Position and colour of every pixel, float32 (5, P), in units of their standard deviations."""
    colours = image_hwc.transpose(2, 0, 1) / np.float32(config.bilateral_sigma_rgb)
    height, width, _ = image_hwc.shape
    positions = _positions(height, width, config.bilateral_sigma_xy)
    return np.concatenate([positions, colours]).reshape(5, -1)


def _infer(
    flat_masks: NDArray[np.bool_],
    kernels: tuple[GaussianKernel, GaussianKernel],
    steps: int,
    lanes: Lanes,
    team: Team,
) -> NDArray[np.float32]:
    """Beliefs (P, lanes) in [-1, 1] of masks (N, P), N <= lanes, after `steps` mean-field steps."""
    num_pixels = flat_masks.shape[1]
    cuts = team.cut(num_pixels)
    unary = empty_rows(num_pixels, len(lanes))
    beliefs = empty_rows(num_pixels, len(lanes))
    team.run(_start, cuts, flat_masks, unary, beliefs)
    for _ in range(steps):
        messages = tuple((kernel.rows, splat_and_blur(kernel, beliefs, lanes, team)) for kernel in kernels)
        team.run(_update, cuts, messages, unary, beliefs, lanes)
    return beliefs


@compiled
def _start(
    flat_masks: NDArray[np.bool_],
    unary: NDArray[np.float32],
    beliefs: NDArray[np.float32],
    start: int,
    stop: int,
) -> None:
    """u = +-1 and b = tanh(u / 2) of masks (N, P), as rows (P, lanes); lanes beyond N are 0."""
    belief = np.float32(math.tanh(0.5))
    for pixel in range(start, stop):
        for lane in range(unary.shape[1]):
            sign = np.float32(0)
            if lane < flat_masks.shape[0]:
                sign = np.float32(1) if flat_masks[lane, pixel] else np.float32(-1)
            unary[pixel, lane] = sign
            beliefs[pixel, lane] = sign * belief


@compiled
def _update(
    messages: tuple[tuple[Rows, NDArray[np.float32]], tuple[Rows, NDArray[np.float32]]],
    unary: NDArray[np.float32],
    beliefs: NDArray[np.float32],
    lanes: Lanes,
    start: int,
    stop: int,
) -> None:
    """Fill beliefs = tanh((unary + A v + A' v') / 2) for both kernels' rows A and vertex values v."""
    (near, near_values), (far, far_values) = messages
    for pixel in range(start, stop):
        total = load(unary, pixel, lanes)
        for k in range(3):  # the corners of a simplex in 2 dimensions ...
            row = load(near_values, near.vertices[pixel, k], lanes)
            total = multiply_add(near.weights[pixel, k], row, total)
        for k in range(6):  # ... and in 5
            row = load(far_values, far.vertices[pixel, k], lanes)
            total = multiply_add(far.weights[pixel, k], row, total)
        # tanh(8 y) as a fraction p / q for |y| <= 9/8, beyond which it is 1 in float32: Lambert's continued
        # fraction at y, then tanh(2 y) = 2 p q / (q^2 + p^2) three times, and a single division at the end.
        y = multiply(clamp(total, np.float32(18)), fill(np.float32(1 / 16), lanes))
        square = multiply(y, y)
        p = multiply(y, multiply_add(np.float32(10), square, fill(np.float32(105), lanes)))
        q = add(multiply(square, add(square, fill(np.float32(45), lanes))), fill(np.float32(105), lanes))
        for _ in range(3):
            product = multiply(p, q)
            q = add(multiply(q, q), multiply(p, p))
            p = add(product, product)
        store(beliefs, pixel, divide(p, q))


@compiled
def _decide(beliefs: NDArray[np.float32], refined: NDArray[np.bool_], start: int, stop: int) -> None:
    """Fill refined (N, P) = beliefs (P, lanes) > 0."""
    for pixel in range(start, stop):
        for mask in range(refined.shape[0]):
            refined[mask, pixel] = beliefs[pixel, mask] > 0
