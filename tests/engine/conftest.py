"""A network so small that a step takes milliseconds."""

from __future__ import annotations

import pytest

from engine.solo.config import DetectionConfig, GridConfig, SoloConfig


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
