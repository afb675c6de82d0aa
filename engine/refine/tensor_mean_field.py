"""The torch backend: mean-field inference for all masks of several images at once, on any device.

The updates are those of engine.refine.mean_field. Once the lattices are built, the host only queues work:
about 20 kernel launches per step, independent of the number of masks and images.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.device import download_masks, upload_images, upload_masks
from engine.refine.config import CrfConfig
from engine.refine.tensor_lattice import TensorKernel, make_kernel


def refine_on_device(
    images: Sequence[NDArray[np.uint8]], masks: Sequence[NDArray[np.bool_]], config: CrfConfig, device: str
) -> list[NDArray[np.bool_]]:
    """`refine_batch` for images (H, W, 3) of one size and their masks (N, H, W) on the host."""
    target = torch.device(device)
    num_masks = [len(image_masks) for image_masks in masks]
    images_bhwc = upload_images(images, len(images), target)
    uploaded = upload_masks(np.concatenate(masks), target)
    refined = download_masks(refine_batch(images_bhwc, uploaded, num_masks, config))
    return np.split(refined, np.cumsum(num_masks)[:-1])


@torch.no_grad()
def refine_batch(images_bhwc: Tensor, masks: Tensor, num_masks: Sequence[int], config: CrfConfig) -> Tensor:
    """Masks bool (N, H, W) after the CRF, on their device; ties are background.

    `images_bhwc` is uint8 (B, H, W, 3) on the masks' device; the first num_masks[0] masks belong to the first
    image, the next num_masks[1] to the second, and so on. Every image takes the memory of the one with the
    most masks: about 20 bytes per pixel and mask, and 300 per pixel. A mask's result depends neither on other
    masks nor on other images. Raises ValueError for wrong or inconsistent shapes, dtypes or numbers.
    """
    _check_arguments(images_bhwc, masks, num_masks)
    if masks.numel() == 0:
        return masks.clone()
    num_images, height, width, _ = images_bhwc.shape
    image_of_mask, lane_of_mask = _mask_slots(num_masks, masks.device)
    unary = torch.zeros(
        (num_images, height * width, max(num_masks)), dtype=torch.float32, device=masks.device
    )
    unary[image_of_mask, :, lane_of_mask] = masks.reshape(len(masks), -1).to(torch.float32) * 2 - 1
    smoothness = _smoothness_kernel(num_images, height, width, config, masks.device)
    appearance = _appearance_kernel(images_bhwc, config)
    beliefs = _infer(unary.reshape(-1, unary.shape[2]), (smoothness, appearance), config.steps)
    return (beliefs.reshape(unary.shape)[image_of_mask, :, lane_of_mask] > 0).reshape(masks.shape)


def _check_arguments(images_bhwc: Tensor, masks: Tensor, num_masks: Sequence[int]) -> None:
    if images_bhwc.dtype != torch.uint8 or images_bhwc.ndim != 4 or images_bhwc.shape[3] != 3:
        raise ValueError(
            f"images must be uint8 (B, H, W, 3), got {images_bhwc.dtype} {tuple(images_bhwc.shape)}"
        )
    if masks.dtype != torch.bool or masks.ndim != 3 or masks.shape[1:] != images_bhwc.shape[1:3]:
        raise ValueError(
            f"masks must be bool (N, {images_bhwc.shape[1]}, {images_bhwc.shape[2]}) like the images, "
            f"got {masks.dtype} {tuple(masks.shape)}"
        )
    if len(num_masks) != len(images_bhwc) or sum(num_masks) != len(masks) or min(num_masks, default=0) < 0:
        raise ValueError(
            f"num_masks must divide {len(masks)} masks among {len(images_bhwc)} images, got {list(num_masks)}"
        )


def _mask_slots(num_masks: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """The image and the lane of every mask, each int64 (N,)."""
    images = [image for image, count in enumerate(num_masks) for _ in range(count)]
    lanes = [lane for count in num_masks for lane in range(count)]
    return torch.tensor(images, device=device), torch.tensor(lanes, device=device)


def _infer(unary: Tensor, kernels: tuple[TensorKernel, TensorKernel], steps: int) -> Tensor:
    """Beliefs in [-1, 1] after `steps` mean-field steps, for unary terms (B * P, lanes) of -1, 0 and 1."""
    beliefs = torch.tanh(unary / 2)
    for _ in range(steps):
        total = unary
        for kernel in kernels:
            total = total + kernel.slice @ kernel.splat_and_blur(beliefs)
        beliefs = torch.tanh(total.div_(2))
    return beliefs


@lru_cache(maxsize=1)
def _smoothness_kernel(
    num_images: int, height: int, width: int, config: CrfConfig, device: torch.device
) -> TensorKernel:
    """The kernel on positions. It depends only on sizes, which seldom change between calls."""
    sigma = config.gaussian_sigma_xy
    positions = _positions(num_images, height, width, sigma, device)
    return make_kernel(positions, (width / sigma, height / sigma), config.gaussian_weight)


def _appearance_kernel(images_bhwc: Tensor, config: CrfConfig) -> TensorKernel:
    """The kernel on positions and colours."""
    num_images, height, width, _ = images_bhwc.shape
    sigma = config.bilateral_sigma_xy
    colours = images_bhwc.permute(0, 3, 1, 2).reshape(num_images, 3, -1).to(torch.float32)
    positions = _positions(num_images, height, width, sigma, images_bhwc.device)
    features = torch.cat([positions, colours / config.bilateral_sigma_rgb], dim=1)
    ranges = (width / sigma, height / sigma, *[255 / config.bilateral_sigma_rgb] * 3)
    return make_kernel(features, ranges, config.bilateral_weight)


def _positions(num_images: int, height: int, width: int, sigma_xy: float, device: torch.device) -> Tensor:
    """Column and row of every pixel of B images, float32 (B, 2, P), in units of `sigma_xy`."""
    rows = torch.arange(height, dtype=torch.float32, device=device)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.float32, device=device).expand(height, width)
    positions = torch.stack([columns, rows]).reshape(2, -1) / sigma_xy
    return positions.expand(num_images, -1, -1)
