"""From images on the host to a batch on the device that computes with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray


def upload_images(
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], batch_size: int, device: torch.device
) -> torch.Tensor:
    """1 to B images uint8 (H, W, 3) of one size as uint8 (B, H, W, 3) on `device`, filled up with black.

    They go to a GPU from page-locked memory, by itself while the host prepares what comes next: torch keeps
    such memory for the next batch, and hands it out again when the copy is over.

    >>> upload_images([np.ones((1, 1, 3), np.uint8)], 2, torch.device("cpu")).tolist()
    [[[[1, 1, 1]]], [[[0, 0, 0]]]]
    """
    shape = (batch_size, *images[0].shape)
    batch = torch.zeros(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    batch_bhwc = batch.numpy()
    for index, image in enumerate(images):
        batch_bhwc[index] = image
    return batch.to(device, non_blocking=True)
