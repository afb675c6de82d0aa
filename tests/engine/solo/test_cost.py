"""Cost of the superpixel-guided loss relative to the network, in CPU time."""

import time

import numpy as np
import pytest
import torch

from engine.solo.batch import Canvas, collate, make_sample
from engine.solo.config import SoloConfig
from engine.solo.network import build_network
from engine.solo.objective import ObjectiveConfig, batch_losses
from engine.solo.superpixel_targets import SuperpixelLossConfig

SIDE, NUM_OBJECTS = 320, 20


def crowded_canvas() -> Canvas:
    """A canvas with about 600 superpixels and 20 objects of 30 to 120 pixels."""
    rng = np.random.default_rng(0)
    cells = np.arange(SIDE) * 25 // SIDE
    labels = (cells[:, None] * 25 + cells[None]).astype(np.int32)
    masks = np.zeros((NUM_OBJECTS, SIDE, SIDE), bool)
    for mask in masks:
        height, width = rng.integers(30, 120, 2)
        top, left = rng.integers(0, SIDE - height), rng.integers(0, SIDE - width)
        mask[top : top + height, left : left + width] = True
    image = rng.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
    weights = np.ones(NUM_OBJECTS, np.float32)
    return Canvas(image_hwc=image, shown_hwc=image, masks=masks, weights=weights, superpixels=labels)


@pytest.mark.slow
def test_the_loss_costs_at_most_15_percent_of_a_step():
    """Measured on the smallest network worth training; the share is lower with ResNet-101."""
    torch.set_num_threads(1)
    solo = SoloConfig(
        backbone="resnet18", image_size=SIDE, pyramid_channels=64, head_channels=64, mask_channels=64
    )
    network, config = build_network(solo), ObjectiveConfig()
    sample = make_sample("a", crowded_canvas(), solo.grid, SuperpixelLossConfig())
    batch = collate([sample, sample])
    shares = []
    for _ in range(3):
        start = time.process_time()
        outputs = network(batch.images.float() / 255)
        forward = time.process_time()
        sums = batch_losses(outputs, batch, config)
        loss = sums.total(sums.positives, sums.masks, config)
        parts = [outputs.objectness, outputs.kernels, outputs.mask_features]
        gradients = torch.autograd.grad(loss, parts, retain_graph=True)
        loss_done = time.process_time()
        torch.autograd.backward(parts, gradients)
        shares.append((loss_done - forward) / (time.process_time() - start))
    assert sorted(shares)[1] <= 0.15
