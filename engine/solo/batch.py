"""What one training step takes: images at the network's size, and their targets at the mask stride."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from engine.masks.boxes import mask_boxes_xyxy
from engine.solo.adaptive_targets import (
    AdaptiveLossConfig,
    AdaptiveTargets,
    boundary_sigmas,
    boundary_weights,
)
from engine.solo.config import MASK_STRIDE, GridConfig
from engine.solo.superpixel_targets import SuperpixelLossConfig, SuperpixelTargets, superpixel_targets
from engine.solo.targets import CellTargets, assign_cells, ignore_cells


@dataclass(frozen=True, kw_only=True, eq=False)
class Canvas:
    """An image with its coarse masks, augmented: all of one size (H, W), multiples of the mask stride.

    `image_hwc` is uint8 RGB; `shown_hwc` the same with changed colours, which the network is shown; `masks`
    are bool (N, H, W) and `weights` float32 (N,) what each counts for: one with 0 is unsure, neither learned
    nor background. `superpixels` are int32 (H, W), -1 off the image.
    """

    image_hwc: NDArray[np.uint8]
    shown_hwc: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    weights: NDArray[np.float32]
    superpixels: NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One image of a batch.

    `shown_chw` is uint8 (3, H, W); `on_image` float32 (P,) over the pixels at mask stride, 1 on the image;
    `masks` float32 (N, P), 0 or 1. `superpixels` and `adaptive` are None where the loss does without.
    `image_id` names the image; `failure` says why it could not be read, and then all else is empty and
    nothing is learned from it.
    """

    image_id: str
    shown_chw: NDArray[np.uint8]
    on_image: NDArray[np.float32]
    masks: NDArray[np.float32]
    cells: CellTargets
    superpixels: SuperpixelTargets | None
    adaptive: AdaptiveTargets | None
    failure: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class SuperpixelTensors:
    """`SuperpixelTargets` as tensors."""

    labels: torch.Tensor
    weights: torch.Tensor
    affinities: torch.Tensor
    areas: torch.Tensor
    states: torch.Tensor

    def to(self, device: torch.device) -> SuperpixelTensors:
        """The same on a device."""
        return SuperpixelTensors(
            labels=self.labels.to(device, non_blocking=True),
            weights=self.weights.to(device, non_blocking=True),
            affinities=self.affinities.to(device, non_blocking=True),
            areas=self.areas.to(device, non_blocking=True),
            states=self.states.to(device, non_blocking=True),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptiveTensors:
    """`AdaptiveTargets` as tensors."""

    instance_weights: torch.Tensor
    pixel_weights: torch.Tensor

    def to(self, device: torch.device) -> AdaptiveTensors:
        """The same on a device."""
        return AdaptiveTensors(
            instance_weights=self.instance_weights.to(device, non_blocking=True),
            pixel_weights=self.pixel_weights.to(device, non_blocking=True),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTargets:
    """The targets of one image as tensors: M cells, the instances (of N) they belong to, masks (N, P)."""

    on_image: torch.Tensor
    cells: torch.Tensor
    owners: torch.Tensor
    masks: torch.Tensor
    superpixels: SuperpixelTensors | None
    adaptive: AdaptiveTensors | None

    def to(self, device: torch.device) -> ImageTargets:
        """The same on a device."""
        return ImageTargets(
            on_image=self.on_image.to(device, non_blocking=True),
            cells=self.cells.to(device, non_blocking=True),
            owners=self.owners.to(device, non_blocking=True),
            masks=self.masks.to(device, non_blocking=True),
            superpixels=self.superpixels.to(device) if self.superpixels is not None else None,
            adaptive=self.adaptive.to(device) if self.adaptive is not None else None,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B samples as tensors: `images` uint8 (B, 3, H, W); `objectness` float32 (B, G), NaN where it is not
    known, as in all of an image that could not be read; `targets` one per image. `image_ids` and `failures`
    are those of the samples."""

    image_ids: tuple[str, ...]
    failures: tuple[str, ...]
    images: torch.Tensor
    objectness: torch.Tensor
    targets: tuple[ImageTargets, ...]

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            objectness=self.objectness.to(device, non_blocking=True),
            targets=tuple(targets.to(device) for targets in self.targets),
        )


def make_sample(
    image_id: str,
    scene: Canvas,
    grid: GridConfig,
    superpixels: SuperpixelLossConfig | None,
    adaptive: AdaptiveLossConfig | None = None,
) -> Sample:
    """The targets of a scene; without `superpixels` or `adaptive`, those of a loss that does without."""
    is_learned = scene.weights > 0
    learned = scene.masks[is_learned]
    cells = ignore_cells(assign_cells(learned, grid), assign_cells(scene.masks[~is_learned], grid))
    on_image = masks_at_stride((scene.superpixels >= 0)[None])[0]
    masks = masks_at_stride(learned)
    targets = None
    if superpixels is not None:
        unit = scene.image_hwc.astype(np.float32) / np.float32(255)
        targets = superpixel_targets(unit, scene.superpixels, learned, superpixels)
    adaptive_targets = None
    if adaptive is not None:
        phi = boundary_weights(masks, on_image, boundary_sigmas(masks, adaptive))
        adaptive_targets = AdaptiveTargets(
            instance_weights=scene.weights[is_learned], pixel_weights=phi.reshape(len(masks), on_image.size)
        )
    return Sample(
        image_id=image_id,
        shown_chw=np.ascontiguousarray(scene.shown_hwc.transpose(2, 0, 1)),
        on_image=on_image.reshape(-1).astype(np.float32),
        masks=masks.reshape(len(masks), on_image.size).astype(np.float32),
        cells=cells,
        superpixels=targets,
        adaptive=adaptive_targets,
    )


def failed_sample(image_id: str, failure: str, size: tuple[int, int], grid: GridConfig) -> Sample:
    """What stands in a batch for an image that could not be read: nothing is learned from it."""
    num_pixels = size[0] * size[1] // MASK_STRIDE**2
    no_cells = np.zeros(0, np.int64)
    return Sample(
        image_id=image_id,
        shown_chw=np.zeros((3, *size), np.uint8),
        on_image=np.zeros(num_pixels, np.float32),
        masks=np.zeros((0, num_pixels), np.float32),
        cells=CellTargets(
            objectness=np.full(grid.num_cells, np.nan, np.float32), cells=no_cells, owners=no_cells
        ),
        superpixels=None,
        adaptive=None,
        failure=failure,
    )


def masks_at_stride(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Masks (N, H, W) at the mask stride: pixels that they cover by half or, where there is none, at all.

    >>> one_pixel = np.zeros((1, 4, 8), bool)
    >>> one_pixel[0, 0, 5] = True
    >>> masks_at_stride(one_pixel).tolist()
    [[[False, True]]]
    """
    count, height, width = masks.shape
    size = (height // MASK_STRIDE, width // MASK_STRIDE)
    coarse = np.zeros((count, *size), bool)
    # Only an object's box is counted: 300 small objects cost what one large one does.
    for i, (x0, y0, x1, y1) in enumerate(mask_boxes_xyxy(masks) // MASK_STRIDE + np.array([0, 0, 1, 1])):
        block = masks[i, y0 * MASK_STRIDE : y1 * MASK_STRIDE, x0 * MASK_STRIDE : x1 * MASK_STRIDE]
        rows, columns = block.shape[0] // MASK_STRIDE, block.shape[1] // MASK_STRIDE
        covered = block.reshape(rows, MASK_STRIDE, columns, MASK_STRIDE).sum(axis=(1, 3))
        by_half = covered * 2 >= MASK_STRIDE**2
        coarse[i, y0 : y0 + rows, x0 : x0 + columns] = by_half if by_half.any() else covered > 0
    return coarse


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one size as a batch."""
    return Batch(
        image_ids=tuple(sample.image_id for sample in samples),
        failures=tuple(sample.failure for sample in samples),
        images=torch.from_numpy(np.stack([sample.shown_chw for sample in samples])),
        objectness=torch.from_numpy(np.stack([sample.cells.objectness for sample in samples])),
        targets=tuple(_image_targets(sample) for sample in samples),
    )


def _image_targets(sample: Sample) -> ImageTargets:
    superpixels = None
    if sample.superpixels is not None:
        superpixels = SuperpixelTensors(
            labels=torch.from_numpy(sample.superpixels.labels),
            weights=torch.from_numpy(sample.superpixels.weights),
            affinities=torch.from_numpy(sample.superpixels.affinities),
            areas=torch.from_numpy(sample.superpixels.areas),
            states=torch.from_numpy(sample.superpixels.states),
        )
    adaptive = None
    if sample.adaptive is not None:
        adaptive = AdaptiveTensors(
            instance_weights=torch.from_numpy(sample.adaptive.instance_weights),
            pixel_weights=torch.from_numpy(sample.adaptive.pixel_weights),
        )
    return ImageTargets(
        on_image=torch.from_numpy(sample.on_image),
        cells=torch.from_numpy(sample.cells.cells),
        owners=torch.from_numpy(sample.cells.owners),
        masks=torch.from_numpy(sample.masks),
        superpixels=superpixels,
        adaptive=adaptive,
    )
