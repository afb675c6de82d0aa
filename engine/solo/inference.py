"""From network outputs to instances of images of any size (arXiv 2003.10152, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from engine.device import upload_images
from engine.images.resizing import fit_image, fit_size
from engine.masks.instances import Instances
from engine.masks.packing import make_instances
from engine.solo.config import DetectionConfig, SoloConfig

if TYPE_CHECKING:
    from engine.solo.network import SoloNetwork, SoloOutputs

METHOD = "solo"
"""The method column of a network's instances in the store."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """N masks of one image, best first: `probabilities` (N, h, w) at the mask stride, and `scores` (N,)."""

    probabilities: torch.Tensor
    scores: torch.Tensor


@torch.inference_mode()
def find_instances(
    network: SoloNetwork, images_hwc: Sequence[NDArray[np.uint8]], config: SoloConfig
) -> list[Instances]:
    """Instances of RGB images uint8 (H, W, 3) of any sizes, each at its image's size, best first.

    The network must be in evaluation mode. All images pass through it as one batch, on its device.
    """
    if not images_hwc:
        return []
    squares = np.stack([fit_image(image, config.image_size) for image in images_hwc])
    device = next(network.parameters()).device
    outputs = network(to_inputs(upload_images(squares, len(squares), device)))
    return [
        _instances(detect(outputs, i, config.detection), (image.shape[0], image.shape[1]), config)
        for i, image in enumerate(images_hwc)
    ]


def to_inputs(squares_bhwc: torch.Tensor) -> torch.Tensor:
    """Network inputs, float32 (B, 3, S, S), of RGB images uint8 (B, S, S, 3)."""
    return squares_bhwc.permute(0, 3, 1, 2).float() / 255


def detect(outputs: SoloOutputs, image: int, config: DetectionConfig) -> Detections:
    """The masks of one image of a batch, after matrix NMS.

    A score is objectness times the mean probability in the mask (maskness, arXiv 1912.04488).
    """
    objectness = outputs.objectness[image].float().sigmoid()
    order = objectness.argsort(descending=True, stable=True)
    cells = order[objectness[order] > config.min_score]
    # Masks are computed only for the cells that NMS compares.
    cells = cells[: config.max_before_nms]
    probabilities = outputs.mask_logits(image, cells).float().sigmoid()
    masks = (probabilities > config.mask_threshold).flatten(1).float()
    areas = masks.sum(dim=1)
    maskness = (probabilities.flatten(1) * masks).sum(dim=1) / areas.clamp(min=1)
    scores = objectness[cells] * maskness
    by_score = scores.argsort(descending=True, stable=True)
    by_score = by_score[areas[by_score] > 0]
    decayed = scores[by_score] * matrix_nms(masks[by_score], config.nms_sigma)
    best = decayed.argsort(descending=True, stable=True)
    best = best[decayed[best] > config.min_score_after_nms][: config.max_instances]
    return Detections(probabilities=probabilities[by_score][best], scores=decayed[best])


def matrix_nms(masks: torch.Tensor, sigma: float) -> torch.Tensor:
    """Factors (N,) of matrix NMS for the scores of masks (N, P) of 0 and 1, best first.

    decay_j = min_i exp(-sigma IoU_ij²) / exp(-sigma max_k IoU_ki²) over the masks i before j and, for each,
    the masks k before it. Source: arXiv 2003.10152, equation 5, with the Gaussian kernel.

    >>> twins = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> [round(factor, 4) for factor in matrix_nms(twins, 2.0).tolist()]  # the second: exp(-2)
    [1.0, 0.1353, 1.0]
    """
    if len(masks) == 0:
        return masks.new_zeros(0)
    overlaps = masks @ masks.T
    areas = masks.sum(dim=1)
    # Row i, column j: the IoU of mask j with the better mask i.
    ious = (overlaps / (areas[:, None] + areas[None] - overlaps).clamp(min=1)).triu(diagonal=1)
    worst = ious.max(dim=0).values
    decay = torch.exp(-sigma * (ious.square() - worst.square()[:, None]))
    # Only better masks lower a score.
    is_better = torch.ones_like(decay, dtype=torch.bool).triu(diagonal=1)
    factors: torch.Tensor = decay.masked_fill(~is_better, 1.0).min(dim=0).values
    return factors


def fitted_masks(detections: Detections, fitted: tuple[int, int], config: SoloConfig) -> NDArray[np.bool_]:
    """Masks (N, h, w) at the size `fitted` of the image in its square."""
    square = (config.image_size, config.image_size)
    masks = np.zeros((len(detections.scores), *fitted), bool)
    for mask, probabilities in zip(masks, detections.probabilities, strict=True):
        part = _resized(probabilities, square)[: fitted[0], : fitted[1]]
        mask[:] = (part > config.detection.mask_threshold).cpu().numpy()
    return masks


def full_masks(
    detections: Detections, size: tuple[int, int], config: SoloConfig
) -> Iterator[NDArray[np.bool_]]:
    """Masks (H, W) at the image's `size`, upsampled one at a time."""
    fitted = fit_size(size, config.image_size)
    for probabilities in detections.probabilities:
        square = _resized(probabilities, (config.image_size, config.image_size))
        full = _resized(square[: fitted[0], : fitted[1]], size)
        yield (full > config.detection.mask_threshold).cpu().numpy()


def _instances(detections: Detections, size: tuple[int, int], config: SoloConfig) -> Instances:
    masks = full_masks(detections, size, config)
    return make_instances(masks, detections.scores.cpu().numpy(), size, METHOD)


def _resized(plane: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    resized = interpolate(plane[None, None], size, mode="bilinear", align_corners=False)
    return resized[0, 0]
