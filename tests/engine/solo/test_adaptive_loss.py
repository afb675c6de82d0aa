"""The adaptive loss against a literal implementation of its equations."""

import math

import numpy as np
import pytest
import torch

from engine.errors import OutOfBoundsError
from engine.solo.adaptive_loss import adaptive_mask_loss
from engine.solo.adaptive_targets import AdaptiveLossConfig, boundary_weights


def reference_weights(mask, on_image, sigma):
    """phi of each pixel, from the distances to all pixels on the other side of the boundary."""
    height, width = mask.shape
    phi = np.zeros(mask.shape)
    pixels = [(y, x) for y in range(height) for x in range(width) if on_image[y, x]]
    for y, x in pixels:
        across = [math.hypot(y - v, x - u) for v, u in pixels if mask[v, u] != mask[y, x]]
        distance = min(across, default=math.inf) - 0.5
        phi[y, x] = 1 - math.exp(-(distance**2) / (2 * sigma**2))
    return phi


def reference_loss(logits, mask, phi):
    """The loss of one instance, pixel by pixel."""
    entropy = overlap = squares = total = 0.0
    for z, m, weight in zip(logits.ravel(), mask.ravel(), phi.ravel(), strict=True):
        p = 1 / (1 + math.exp(-z))
        entropy -= weight * (m * math.log(p) + (1 - m) * math.log(1 - p))
        overlap += 2 * weight * p * m
        squares += weight * p**2 + weight * m**2
        total += weight
    return entropy / total + 1 - overlap / (squares + 1e-6)


def random_case(seed):
    """Three masks of 13 x 18 pixels, whose last 2 rows are off the image, the image area and logits."""
    rng = np.random.default_rng(seed)
    on_image = np.ones((13, 18), bool)
    on_image[11:] = False
    masks = np.zeros((3, 13, 18), bool)
    masks[0, 2:7, 3:8] = True
    masks[1, 9, 17] = True
    masks[2] = rng.random((13, 18)) < 0.5
    return masks & on_image, on_image, rng.normal(0, 2, (3, 13, 18))


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_pixel_weights_equal_the_equation(sigma):
    masks, on_image, _ = random_case(0)
    expected = [reference_weights(mask, on_image, sigma) for mask in masks]
    np.testing.assert_allclose(boundary_weights(masks, on_image, [sigma] * len(masks)), expected, atol=1e-6)


def test_pixels_have_full_weight_without_a_boundary():
    masks = np.zeros((2, 4, 6), bool)
    on_image = np.ones((4, 6), bool)
    on_image[:, 5] = False
    masks[0] = on_image
    assert (boundary_weights(masks, on_image, [2.0] * len(masks)) == on_image).all()
    assert boundary_weights(masks[:0], on_image, []).shape == (0, 4, 6)


@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_the_equation(seed):
    masks, on_image, logits = random_case(seed)
    phi = boundary_weights(masks, on_image, [2.0] * len(masks)).astype(np.float64)
    expected = [reference_loss(z, m, weight) for z, m, weight in zip(logits, masks, phi, strict=True)]
    tensors = [torch.from_numpy(values).double().flatten(1) for values in (logits, masks, phi)]
    np.testing.assert_allclose(adaptive_mask_loss(*tensors), expected, rtol=1e-6)


def test_gradients_equal_finite_differences():
    masks, on_image, logits = random_case(1)
    phi = torch.from_numpy(boundary_weights(masks, on_image, [2.0] * len(masks))).double().flatten(1)
    targets = torch.from_numpy(masks).double().flatten(1)
    values = torch.from_numpy(logits).flatten(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: adaptive_mask_loss(z, targets, phi), (values,))


def test_extreme_logits_give_finite_losses_and_gradients():
    logits = torch.tensor([[-90.0, 90.0], [0.0, 0.0]], requires_grad=True)
    loss = adaptive_mask_loss(logits, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", ["sigma", "sigma_of_size", "epsilon"])
def test_settings_out_of_range_name_the_field(name):
    with pytest.raises(OutOfBoundsError, match=f"^{name} is a number > 0"):
        AdaptiveLossConfig(**{name: 0})
