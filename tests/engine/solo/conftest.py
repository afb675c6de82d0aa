"""A network so small that a step takes milliseconds, and scenes for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from engine.solo.batch import Scene
from engine.solo.config import DetectionConfig, GridConfig, SoloConfig
from engine.superpixels.hierarchy import number_by_first_pixel


@pytest.fixture
def tiny_solo() -> SoloConfig:
    return SoloConfig(
        backbone="test_resnet",
        image_size=64,
        pyramid_channels=16,
        head_channels=16,
        mask_channels=16,
        head_depth=1,
        grid=GridConfig(grids=(8, 6, 4, 3, 2), ranges_px=((1, 16), (8, 24), (16, 40), (32, 64), (48, 128))),
        detection=DetectionConfig(max_before_nms=100, max_instances=50),
    )


@pytest.fixture
def make_scene() -> Callable[..., Scene]:
    """`make_scene(seed, boxes)` is a 64 x 64 scene of bright boxes, its lowest 8 rows off the image."""

    def make(seed: int, boxes_xyxy: list[tuple[int, int, int, int]]) -> Scene:
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 60, (64, 64, 3)).astype(np.uint8)
        masks = np.zeros((len(boxes_xyxy), 64, 64), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes_xyxy, strict=True):
            mask[y0:y1, x0:x1] = True
            image[mask] = rng.integers(120, 255, 3)
        # Superpixels that follow the boxes within a checkerboard of 8 x 8 pixels.
        board = np.arange(64)[:, None] // 8 * 8 + np.arange(64)[None] // 8
        labels = number_by_first_pixel(board + 64 * (image.max(axis=2) > 100))
        image[56:], masks[:, 56:] = 0, False
        labels[56:] = -1
        labels[:56] = number_by_first_pixel(labels[:56])
        weights = np.linspace(0.25, 1, len(masks), dtype=np.float32)
        return Scene(image_hwc=image, shown_hwc=image, masks=masks, weights=weights, superpixels=labels)

    return make
