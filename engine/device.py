"""Transfers between the host and a device, and how networks compute on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.types import Precision


def upload_images(
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], batch_size: int, device: torch.device
) -> torch.Tensor:
    """Upload images uint8 (H, W, 3) of one size as a batch uint8 (B, H, W, 3), padded with black images.

    The copy to a GPU is asynchronous, from page-locked memory, which torch reuses when the copy is complete.

    >>> upload_images([np.ones((1, 1, 3), np.uint8)], 2, torch.device("cpu")).tolist()
    [[[[1, 1, 1]]], [[[0, 0, 0]]]]
    """
    shape = (batch_size, *images[0].shape)
    batch = torch.zeros(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    batch_bhwc = batch.numpy()
    for index, image in enumerate(images):
        batch_bhwc[index] = image
    return batch.to(device, non_blocking=True)


def upload_masks(masks: NDArray[np.bool_], device: torch.device) -> torch.Tensor:
    """Upload masks bool (N, H, W), packed for the transfer, eight pixels in a byte.

    >>> upload_masks(np.array([[[1, 0, 1]]], dtype=bool), torch.device("cpu")).tolist()
    [[[True, False, True]]]
    """
    packed = torch.from_numpy(np.packbits(masks))
    if device.type == "cuda":
        packed = packed.pin_memory().to(device, non_blocking=True)
    bits = (packed[:, None] & _bit_values(device)) > 0
    return bits.flatten()[: masks.size].reshape(masks.shape)


def download_masks(masks: torch.Tensor) -> NDArray[np.bool_]:
    """Download masks bool (N, H, W), packed for the transfer, eight pixels in a byte.

    >>> download_masks(torch.tensor([[[True, False, True]]])).tolist()
    [[[True, False, True]]]
    """
    bits = torch.nn.functional.pad(masks.flatten(), (0, -masks.numel() % 8)).reshape(-1, 8)
    packed = (bits * _bit_values(masks.device)).sum(dim=1, dtype=torch.uint8).cpu().numpy()
    unpacked = np.unpackbits(packed, count=masks.numel())
    return unpacked.view(np.bool_).reshape(tuple(masks.shape))


def _bit_values(device: torch.device) -> torch.Tensor:
    """The values of a byte's bits, in numpy's order."""
    return torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=device)


_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    """Run the block under autocast to `precision`."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST[precision])


@contextlib.contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Run the block with deterministic cuDNN algorithms and without TF32 in convolutions."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
