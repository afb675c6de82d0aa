"""Samples and batches of a training step: images at the network's size, and targets at the mask stride."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engine.masks.boxes import mask_boxes_xyxy
from engine.solo.adaptive_targets import AdaptiveLossConfig, AdaptiveTargets, adaptive_targets
from engine.solo.config import MASK_STRIDE, GridConfig
from engine.solo.superpixel_targets import SuperpixelLossConfig, SuperpixelTargets, superpixel_targets
from engine.solo.targets import CellTargets, assign_cells, ignore_cells
from engine.solo.tensors import TensorGroup


@dataclass(frozen=True, kw_only=True, eq=False)
class Canvas:
    """An augmented image with its coarse masks, all of one size (H, W), multiples of the mask stride.

    `image_hwc` is uint8 RGB, and `shown_hwc` the same image with augmented colours, the network's input.
    `masks` are bool (N, H, W) with `weights` float32 (N,) in the loss; masks of weight 0 are ignored, that is
    neither learned nor background. `superpixels` are int32 (H, W), -1 off the image.
    """

    image_hwc: NDArray[np.uint8]
    shown_hwc: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    weights: NDArray[np.float32]
    superpixels: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTargets(TensorGroup):
    """Targets of one image.

    `on_image` is float32 (P,) over the pixels at mask stride, 1 on the image and 0 off it; `masks` float32
    (N, P), 0 or 1. `superpixels` and `adaptive` are None if the loss does not need them.
    """

    on_image: torch.Tensor
    masks: torch.Tensor
    cells: CellTargets
    superpixels: SuperpixelTargets | None = None
    adaptive: AdaptiveTargets | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One image of a batch: `shown_chw`, uint8 (3, H, W), and its targets.

    `failure` is the reason why the image could not be read, or empty. The targets of such an image teach
    nothing.
    """

    image_id: str
    shown_chw: torch.Tensor
    targets: ImageTargets
    failure: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch(TensorGroup):
    """B samples of one size: `images` uint8 (B, 3, H, W) and the fields of the samples."""

    image_ids: tuple[str, ...]
    failures: tuple[str, ...]
    images: torch.Tensor
    targets: tuple[ImageTargets, ...]

    @property
    def objectness(self) -> torch.Tensor:
        """Objectness targets of all images, float32 (B, G), see `CellTargets`."""
        return torch.stack([targets.cells.objectness for targets in self.targets])


def make_sample(
    image_id: str,
    canvas: Canvas,
    grid: GridConfig,
    superpixels: SuperpixelLossConfig | None,
    adaptive: AdaptiveLossConfig | None = None,
) -> Sample:
    """The sample of a canvas, with superpixel and adaptive targets if their configurations are given."""
    is_learned = canvas.weights > 0
    masks = canvas.masks[is_learned]
    on_image = masks_at_stride((canvas.superpixels >= 0)[None])[0]
    coarse_masks = masks_at_stride(masks)
    targets = ImageTargets(
        on_image=torch.from_numpy(on_image.reshape(-1).astype(np.float32)),
        masks=torch.from_numpy(coarse_masks.reshape(len(masks), on_image.size).astype(np.float32)),
        cells=ignore_cells(assign_cells(masks, grid), assign_cells(canvas.masks[~is_learned], grid)),
        superpixels=None if superpixels is None else _superpixel_targets(canvas, masks, superpixels),
        adaptive=None
        if adaptive is None
        else adaptive_targets(coarse_masks, on_image, canvas.weights[is_learned], adaptive),
    )
    shown_chw = np.ascontiguousarray(canvas.shown_hwc.transpose(2, 0, 1))
    return Sample(image_id=image_id, shown_chw=torch.from_numpy(shown_chw), targets=targets)


def _superpixel_targets(
    canvas: Canvas, masks: NDArray[np.bool_], config: SuperpixelLossConfig
) -> SuperpixelTargets:
    unit_hwc = canvas.image_hwc.astype(np.float32) / np.float32(255)
    return superpixel_targets(unit_hwc, canvas.superpixels, masks, config)


def failed_sample(image_id: str, failure: str, size: tuple[int, int], grid: GridConfig) -> Sample:
    """Placeholder in a batch for an image that could not be read: it has no effect on the loss."""
    num_pixels = size[0] * size[1] // MASK_STRIDE**2
    no_cells = torch.zeros(0, dtype=torch.int64)
    cells = CellTargets(
        objectness=torch.full((grid.num_cells,), torch.nan), indices=no_cells, instance_of_cell=no_cells
    )
    return Sample(
        image_id=image_id,
        shown_chw=torch.zeros((3, *size), dtype=torch.uint8),
        targets=ImageTargets(
            on_image=torch.zeros(num_pixels), masks=torch.zeros((0, num_pixels)), cells=cells
        ),
        failure=failure,
    )


def masks_at_stride(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Masks (N, H, W) at the mask stride: pixels covered by at least half or, if there are none, at all.

    >>> one_pixel = np.zeros((1, 4, 8), bool)
    >>> one_pixel[0, 0, 5] = True
    >>> masks_at_stride(one_pixel).tolist()
    [[[False, True]]]
    """
    count, height, width = masks.shape
    size = (height // MASK_STRIDE, width // MASK_STRIDE)
    coarse = np.zeros((count, *size), bool)
    # Only each object's box is processed: 300 small objects take as long as one large one.
    for i, (x0, y0, x1, y1) in enumerate(mask_boxes_xyxy(masks) // MASK_STRIDE + np.array([0, 0, 1, 1])):
        block = masks[i, y0 * MASK_STRIDE : y1 * MASK_STRIDE, x0 * MASK_STRIDE : x1 * MASK_STRIDE]
        rows, columns = block.shape[0] // MASK_STRIDE, block.shape[1] // MASK_STRIDE
        covered = block.reshape(rows, MASK_STRIDE, columns, MASK_STRIDE).sum(axis=(1, 3))
        by_half = covered * 2 >= MASK_STRIDE**2
        coarse[i, y0 : y0 + rows, x0 : x0 + columns] = by_half if by_half.any() else covered > 0
    return coarse


def collate(samples: Sequence[Sample]) -> Batch:
    """A batch of samples of one size."""
    return Batch(
        image_ids=tuple(sample.image_id for sample in samples),
        failures=tuple(sample.failure for sample in samples),
        images=torch.stack([sample.shown_chw for sample in samples]),
        targets=tuple(sample.targets for sample in samples),
    )
