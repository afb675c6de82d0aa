"""The fast backends against the pydensecrf reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from engine.masks.components import paired_ious
from engine.refine import CrfConfig, refine_images, refine_masks
from engine.refine.tensor_mean_field import refine_batch

pytest.importorskip("pydensecrf")

NUMBA = CrfConfig(backend="numba")
TORCH = CrfConfig(backend="torch")
REFERENCE = CrfConfig(backend="pydensecrf")


def coarse_boxes(height: int, width: int, boxes_xyxy: list[tuple[int, int, int, int]]) -> NDArray[np.bool_]:
    masks = np.zeros((len(boxes_xyxy), height, width), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes_xyxy, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def agreement(image: NDArray[np.uint8], masks: NDArray[np.bool_], **settings: float) -> NDArray[np.float64]:
    """IoU between the masks of each fast backend and those of the reference."""
    expected = refine_masks(image, masks, replace(REFERENCE, **settings))
    refined = [refine_masks(image, masks, replace(fast, **settings)) for fast in (NUMBA, TORCH)]
    return np.concatenate([paired_ious(found, expected) for found in refined])


def test_agreement_on_a_non_square_photograph() -> None:
    image = np.ascontiguousarray(data.astronaut()[:256:2, 64:352:2])
    masks = coarse_boxes(*image.shape[:2], [(40, 10, 110, 90), (0, 0, 60, 128), (100, 60, 140, 120)])
    ious = agreement(image, masks)
    assert ious.mean() >= 0.995
    assert ious.min() >= 0.99


def test_torch_refines_images_together_as_it_refines_each_alone() -> None:
    images = np.stack([data.astronaut()[:160:2, :192:2], data.coffee()[:160:2, :192:2]])
    masks = coarse_boxes(80, 96, [(40, 10, 70, 60), (0, 0, 60, 40), (20, 30, 90, 70), (10, 10, 50, 50)])
    together = refine_batch(torch.tensor(images), torch.tensor(masks), (3, 1), TORCH).numpy()
    pairs = zip(images, (masks[:3], masks[3:]), strict=True)
    alone = [refine_masks(image, image_masks, TORCH) for image, image_masks in pairs]
    assert np.array_equal(together, np.concatenate(alone))
    assert 0 < (together ^ masks).sum() < masks.sum()
    with pytest.raises(ValueError, match="divide 4 masks among 2 images"):
        refine_batch(torch.tensor(images), torch.tensor(masks), (3, 2), TORCH)


@pytest.mark.parametrize("config", [NUMBA, TORCH, REFERENCE], ids=lambda config: config.backend)
def test_images_with_and_without_masks_are_refined_together(config: CrfConfig) -> None:
    image = np.ascontiguousarray(data.astronaut()[:160:2, :192:2])
    masks = coarse_boxes(80, 96, [(40, 10, 70, 60), (0, 0, 60, 40), (20, 30, 90, 70)])
    groups = [masks[:1], masks[:0], masks[1:], masks[:0]]
    together = refine_images([image, image, 255 - image, image], groups, config)
    assert [refined.shape for refined in together] == [group.shape for group in groups]
    assert np.array_equal(together[0], refine_masks(image, groups[0], config))
    assert np.array_equal(together[2], refine_masks(255 - image, groups[2], config))
    assert [refined.shape for refined in refine_images([image], [masks[:0]], config)] == [(0, 80, 96)]
    with pytest.raises(ValueError, match="the same size"):
        refine_images([image, image[:40]], [masks, masks[:, :40]], config)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_agreement_on_a_gpu() -> None:
    image = np.ascontiguousarray(data.astronaut()[:256:2, 64:352:2])
    masks = coarse_boxes(*image.shape[:2], [(40, 10, 110, 90), (0, 0, 60, 128), (100, 60, 140, 120)])
    expected = refine_masks(image, masks, REFERENCE)
    assert paired_ious(refine_masks(image, masks, device="cuda"), expected).min() >= 0.99


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 1},
        {"gaussian_sigma_xy": 1.0, "gaussian_weight": 3.0},
        {"bilateral_sigma_xy": 20.0, "bilateral_sigma_rgb": 13.0, "bilateral_weight": 4.0},
        {"gaussian_weight": 0.0},
        {"bilateral_weight": 0.0},
    ],
)
def test_every_setting_has_the_same_effect_as_in_the_reference(settings: dict[str, float]) -> None:
    image = np.ascontiguousarray(data.coffee()[100:300:3, 200:400:2])
    rng = np.random.default_rng(0)
    height, width, _ = image.shape
    noise = coarse_boxes(height, width, [(30, 20, 70, 50), (5, 5, 40, 60)]) ^ (
        rng.random((2, height, width)) < 0.1
    )
    assert agreement(image, noise, **settings).min() >= 0.99


def test_agreement_on_noise() -> None:
    rng = np.random.default_rng(9)
    image = rng.integers(0, 256, (48, 64, 3), np.uint8)
    masks = np.kron(rng.random((4, 6, 8)) < 0.5, np.ones((8, 8), bool))
    assert agreement(image, masks).min() >= 0.99


@pytest.mark.parametrize("num_threads", [2, 5])
def test_neither_threads_nor_other_masks_change_a_bit(num_threads: int) -> None:
    image = np.ascontiguousarray(data.chelsea()[:120:2, :180:2])
    rng = np.random.default_rng(2)
    masks = np.kron(rng.random((19, 10, 15)) < 0.4, np.ones((6, 6), bool))
    together = refine_masks(image, masks, NUMBA, num_threads=num_threads)
    alone = [refine_masks(image, mask[None], NUMBA)[0] for mask in masks]
    assert np.array_equal(together, np.array(alone))


@pytest.mark.slow
def test_agreement_on_boxes_of_coco_instances(development_data: Callable[[str], Path]) -> None:
    annotations = development_data("data/coco") / "annotations" / "instances_val2017.json"
    content = json.loads(annotations.read_text())
    ious: list[float] = []
    for info in sorted(content["images"], key=lambda info: info["id"])[:8]:
        boxes = [entry["bbox"] for entry in content["annotations"] if entry["image_id"] == info["id"]]
        with Image.open(annotations.parents[1] / "val2017" / info["file_name"]) as opened:
            image = np.asarray(opened.convert("RGB"))
        corners = [(int(x), int(y), int(x + w) + 1, int(y + h) + 1) for x, y, w, h in boxes[:3]]
        ious += agreement(image, coarse_boxes(*image.shape[:2], corners)).tolist()
    assert np.mean(ious) >= 0.995
    assert np.mean(np.array(ious) >= 0.99) >= 0.99
