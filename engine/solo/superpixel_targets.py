"""What the superpixels of an image say of its masks, made where images are loaded (METHODS 4).

Nothing here depends on the network, so that a training step only has to average and to multiply.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.boxes import mask_boxes_xyxy
from engine.errors import ConfigurationError
from engine.solo.config import MASK_STRIDE
from engine.superpixels.graph import build_graph, labels_at_stride
from engine.superpixels.hierarchy import number_by_first_pixel

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1

_FAR_COLOUR = 100.0


@dataclass(frozen=True, kw_only=True)
class SuperpixelLossConfig:
    """The constants of the superpixel-guided loss."""

    alpha_1: float = 0.05
    """Scale of the squared colour distance (RGB in [0, 1]) at which a pixel counts less in its superpixel."""
    alpha_2: float = 0.003
    """Scale of the squared colour distance at which superpixels stop to support one another."""
    box_scale: float = 2.0
    """An object's superpixels are those that touch its box, enlarged so many times around its middle."""

    def __post_init__(self) -> None:
        for name in ("alpha_1", "alpha_2", "box_scale"):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"superpixel_loss.{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class SuperpixelTargets:
    """K superpixels at the mask stride, and what they are to each of N instances.

    `labels` int64 (P,) over the pixels at mask stride, row by row, 0 off the image; `weights` float32 (P,),
    delta divided by its sum over the superpixel, 0 off the image; `affinities` float32 (K, K), psi with rows
    of sum 1; `states` int8 (N, K): POSITIVE, NEGATIVE or IGNORED.
    """

    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    affinities: NDArray[np.float32]
    states: NDArray[np.int8]


def superpixel_targets(
    image_hwc: NDArray[np.float32],
    labels: NDArray[np.int32],
    masks: NDArray[np.bool_],
    config: SuperpixelLossConfig,
) -> SuperpixelTargets:
    """Targets of an image, RGB in [0, 1] (H, W, 3), from its superpixels and coarse masks (N, H, W).

    `labels` is int32 (H, W), -1 off the image; H and W are multiples of the mask stride. Superpixels that are
    nowhere the most frequent at the mask stride are left out.

    Source: arXiv 2509.05352, section 3.2.
    """
    coarse, kept = _at_mask_stride(labels)
    # Off the image is one superpixel more while the graph is built, and none after. Its colour is far from
    # all others, so that it joins nothing.
    everywhere = np.where(labels < 0, labels.max() + 1, labels).astype(np.int32)
    coloured = np.where((labels < 0)[:, :, None], np.float32(_FAR_COLOUR), image_hwc)
    graph = build_graph(coloured, number_by_first_pixel(everywhere))
    number_in_graph = _numbers_in_graph(everywhere)
    affinities = graph.affinities(config.alpha_2)[np.ix_(number_in_graph[kept], number_in_graph[kept])]
    weights = _pixel_weights(image_hwc, coarse, graph.mean_colours[number_in_graph[kept]], config.alpha_1)
    # A row of a superpixel has its 1 on the diagonal, so that no sum is 0.
    rows = affinities / affinities.sum(axis=1, keepdims=True)
    return SuperpixelTargets(
        labels=np.maximum(coarse, 0).ravel().astype(np.int64),
        weights=weights,
        affinities=rows,
        states=superpixel_states(labels, masks, config.box_scale)[:, kept],
    )


def superpixel_states(
    labels: NDArray[np.int32], masks: NDArray[np.bool_], box_scale: float
) -> NDArray[np.int8]:
    """What each superpixel 0..K-1 of labels (H, W) is to each of the masks (N, H, W): int8 (N, K).

    POSITIVE if all its pixels are in the mask, NEGATIVE if none is and it touches the mask's box enlarged
    `box_scale` times, IGNORED otherwise.

    >>> superpixel_states(np.int32([[0, 0, 1, 2, 3]]), np.array([[[1, 1, 1, 0, 0]]], bool), 1.6).tolist()
    [[1, 1, 0, -1]]
    """
    num_labels = int(labels.max(initial=-1)) + 1
    areas = np.bincount(labels[labels >= 0], minlength=num_labels)
    states = np.full((len(masks), num_labels), IGNORED, np.int8)
    for i, (x0, y0, x1, y1) in enumerate(mask_boxes_xyxy(masks)):
        rows, columns = slice(y0, y1), slice(x0, x1)
        covered = labels[rows, columns][masks[i, rows, columns]]
        inside = np.bincount(covered[covered >= 0], minlength=num_labels)
        near = labels[_enlarged(y0, y1, box_scale), _enlarged(x0, x1, box_scale)]
        is_near = np.bincount(near[near >= 0], minlength=num_labels) > 0
        states[i, is_near & (inside == 0)] = NEGATIVE
        states[i, (inside == areas) & (areas > 0)] = POSITIVE
    return states


def _enlarged(start: int, stop: int, scale: float) -> slice:
    """The range start..stop made `scale` times as long around its middle, in whole pixels."""
    middle, half = (start + stop) / 2, scale * (stop - start) / 2
    return slice(max(round(middle - half), 0), max(round(middle + half), 0))


def _at_mask_stride(labels: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Labels at mask stride, numbered 0..K-1 in the old order, -1 off the image; and the old numbers (K,)."""
    coarse = labels_at_stride(labels, MASK_STRIDE)
    kept = np.unique(coarse[coarse >= 0])
    numbers = np.full(int(labels.max(initial=-1)) + 2, -1, np.int32)  # the last entry is that of -1
    numbers[kept] = np.arange(len(kept))
    return numbers[coarse], kept.astype(np.int64)


def _numbers_in_graph(everywhere: NDArray[np.int32]) -> NDArray[np.int64]:
    """From the labels of an image to the numbers that `number_by_first_pixel` gives them."""
    numbers = np.zeros(int(everywhere.max()) + 1, np.int64)
    numbers[everywhere.ravel()] = number_by_first_pixel(everywhere).ravel()
    return numbers


def _pixel_weights(
    image_hwc: NDArray[np.float32],
    coarse: NDArray[np.int32],
    mean_colours: NDArray[np.float32],
    alpha_1: float,
) -> NDArray[np.float32]:
    """delta = exp(-|mu_k - C_i|² / alpha_1), divided by its sum over the superpixel: (P,)."""
    height, width = coarse.shape
    blocks = image_hwc.reshape(height, MASK_STRIDE, width, MASK_STRIDE, 3).mean(axis=(1, 3))
    on_image = coarse.ravel() >= 0
    numbers = coarse.ravel()[on_image]
    distances = np.square(blocks.reshape(-1, 3)[on_image] - mean_colours[numbers]).sum(axis=1)
    deltas = np.exp(-distances / alpha_1)
    weights = np.zeros(height * width, np.float32)
    weights[on_image] = deltas / np.bincount(numbers, weights=deltas)[numbers]
    return weights
