"""Transfers between host and device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from engine.device import download_masks, upload_images, upload_masks

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 12, 16, 3)).astype(np.uint8)


@pytest.mark.parametrize("images", [IMAGES[:3], list(IMAGES[:3])], ids=["array", "list"])
def test_a_batch_is_padded_with_black_images(images: Sequence[np.ndarray]) -> None:
    batch = upload_images(images, 4, torch.device("cpu"))
    assert batch.dtype == torch.uint8
    assert np.array_equal(batch[:3], IMAGES[:3])
    assert not batch[3].any()


def test_too_many_images_are_refused() -> None:
    with pytest.raises(IndexError):
        upload_images(IMAGES, 4, torch.device("cpu"))


DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
    ),
]


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 8, 8), (0, 4, 4)])
@pytest.mark.parametrize("device", DEVICES)
def test_masks_are_unchanged_by_the_transfer(shape: tuple[int, int, int], device: str) -> None:
    masks = np.random.default_rng(1).random(shape) < 0.5
    there = upload_masks(masks, torch.device(device))
    assert there.device.type == device
    assert np.array_equal(there.cpu().numpy(), masks)
    back = download_masks(there)
    assert (back.dtype, back.shape) == (np.bool_, masks.shape)
    assert np.array_equal(back, masks)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_successive_batches_keep_their_own_images() -> None:
    # Page-locked memory is reused; an unfinished copy must not see the next batch.
    batches = [np.full((8, 480, 480, 3), number, np.uint8) for number in range(50)]
    uploaded = [upload_images(batch, 8, torch.device("cuda")) for batch in batches]
    assert all(bool((there == number).all()) for number, there in enumerate(uploaded))
