from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.errors import OutOfBoundsError
from engine.solo.batch import collate, failed_sample, make_sample, masks_at_stride
from engine.solo.losses import focal_loss, pixel_mask_loss
from engine.solo.network import build_network
from engine.solo.objective import ObjectiveConfig, batch_losses, mask_losses
from engine.solo.superpixel_targets import SuperpixelLossConfig

SUPERPIXELS = SuperpixelLossConfig()
BOXES = [(8, 8, 32, 32), (40, 16, 52, 40)]


def total(sums, config):
    return sums.total(sums.positives, sums.masks, config)


def test_pixel_loss_worked_by_hand():
    logits = torch.tensor([[0.0, 0.0, 50.0]])
    targets, valid = torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([1.0, 1.0, 0.0])
    # The third pixel is off the image. p = 0.5, 0.5: dice 1 - 2 * 0.5 / (0.5 + 1), cross-entropy log 2.
    expected = 1 - 1 / 1.5 + np.log(2)
    np.testing.assert_allclose(pixel_mask_loss(logits, targets, valid), [expected], rtol=1e-5)
    assert pixel_mask_loss(torch.full((1, 3), -90.0), torch.zeros(1, 3), valid).isfinite().all()


def test_focal_gradients_equal_finite_differences():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 1, 0, 1, 0, 0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda values: focal_loss(values, targets), (logits,))


def test_an_object_without_a_whole_superpixel_has_the_pixel_wise_loss(tiny_solo, make_canvas):
    canvas = make_canvas(0, [BOXES[0], (42, 42, 45, 45)])
    # The small object lies within one superpixel.
    labels = np.where(canvas.masks[1], canvas.superpixels[41, 41], canvas.superpixels)
    sample = make_sample("a", replace(canvas, superpixels=labels), tiny_solo.grid, SUPERPIXELS)
    targets = collate([sample]).targets[0]
    instances = targets.cells.instance_of_cell
    logits = torch.randn(len(instances), 256, generator=torch.Generator().manual_seed(0))
    losses = mask_losses(logits, targets, ObjectiveConfig())
    falls_back = instances == 1
    assert losses.falls_back.tolist() == falls_back.tolist()
    assert losses.weights.tolist() == [1] * len(falls_back)
    pixels = mask_losses(logits, targets, ObjectiveConfig(mask_term="pixel"))
    assert torch.equal(losses.mask_term[falls_back], pixels.mask_term[falls_back])
    assert not torch.isclose(losses.mask_term[~falls_back], pixels.mask_term[~falls_back]).any()
    assert torch.equal(losses.soft, pixels.soft)
    assert pixels.falls_back.sum() == 0
    alone = mask_losses(logits, targets, ObjectiveConfig(soft_weight=0))
    assert torch.equal(alone.mask_term, losses.mask_term)
    assert alone.soft.sum() == 0


@pytest.mark.parametrize("mask_term", ["superpixel", "pixel", "adaptive"])
@pytest.mark.parametrize(
    "boxes",
    [
        [],
        [(30, 30, 31, 31)],
        [(0, 0, 64, 64)],
        [(i % 60, i // 5, i % 60 + 3, i // 5 + 3) for i in range(300)],
    ],
    ids=["empty", "one pixel", "everything", "300 instances"],
)
def test_extreme_canvases_give_finite_losses_and_gradients(tiny_solo, make_canvas, boxes, mask_term):
    config = ObjectiveConfig(mask_term=mask_term)
    adaptive = config.adaptive_loss if config.needs_stability else None
    network = build_network(tiny_solo)
    samples = [
        make_sample("a", make_canvas(0, boxes), tiny_solo.grid, SUPERPIXELS, adaptive),
        make_sample("b", make_canvas(1, []), tiny_solo.grid, SUPERPIXELS, adaptive),
        failed_sample("c", "truncated", (64, 64), tiny_solo.grid),
    ]
    batch = collate(samples).to(torch.device("cpu"))
    loss = total(batch_losses(network(batch.images.float() / 255), batch, config), config)
    loss.backward()
    assert loss.isfinite()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_a_failed_image_does_not_change_the_loss(tiny_solo, make_canvas):
    network, config = build_network(tiny_solo), ObjectiveConfig()
    good = make_sample("a", make_canvas(0, BOXES), tiny_solo.grid, SUPERPIXELS)
    failed = failed_sample("b", "missing", (64, 64), tiny_solo.grid)

    def loss(samples):
        batch = collate(samples)
        return total(batch_losses(network(batch.images.float() / 255), batch, config), config)

    torch.testing.assert_close(loss([good, failed]), loss([good]))


def test_losses_of_two_workers_add_up_to_the_loss_of_one(tiny_solo, make_canvas):
    network, config = build_network(tiny_solo), ObjectiveConfig()
    samples = [
        make_sample(name, make_canvas(seed, boxes), tiny_solo.grid, SUPERPIXELS)
        for seed, (name, boxes) in enumerate([("a", BOXES), ("b", BOXES[:1]), ("c", []), ("d", BOXES[1:])])
    ]
    sums = []
    for part in (samples, samples[:2], samples[2:]):
        batch = collate(part)
        sums.append(batch_losses(network(batch.images.float() / 255), batch, config))
    whole, first, second = sums
    counts = first.counts() + second.counts()
    assert torch.equal(counts, whole.counts())
    parts = [part.total(counts[0], counts[1], config) for part in (first, second)]
    torch.testing.assert_close(parts[0] + parts[1], total(whole, config))


def test_the_adaptive_loss_is_a_mean_weighted_by_stability(tiny_solo, make_canvas):
    """sum Z l / sum Z over the cells of a batch, for any division of its images among workers."""
    config = ObjectiveConfig(mask_term="adaptive", soft_weight=0, mask_weight=1)
    network = build_network(tiny_solo)
    samples = [
        make_sample(name, make_canvas(seed, BOXES), tiny_solo.grid, None, config.adaptive_loss)
        for seed, name in enumerate("ab")
    ]
    batch = collate(samples)
    outputs = network(batch.images.float() / 255)
    sums = batch_losses(outputs, batch, config)
    losses, weights = [], []
    for image, targets in enumerate(batch.targets):
        logits = outputs.mask_logits(image, targets.cells.indices).flatten(1)
        losses.extend(mask_losses(logits, targets, config).mask_term.tolist())
        weights.extend(targets.adaptive.instance_weights[targets.cells.instance_of_cell].tolist())
    assert set(weights) == {0.25, 1.0}
    without_focal = total(sums, config) - sums.focal / sums.positives
    np.testing.assert_allclose(without_focal.item(), np.average(losses, weights=weights), rtol=1e-5)
    parts = [batch_losses(network(collate([s]).images.float() / 255), collate([s]), config) for s in samples]
    counts = parts[0].counts() + parts[1].counts()
    shares = [part.total(counts[0], counts[1], config) for part in parts]
    torch.testing.assert_close(shares[0] + shares[1], total(sums, config))


def test_masks_at_stride_are_majorities_and_no_instance_vanishes():
    masks = np.zeros((3, 8, 8), bool)
    masks[0, :, 2:] = True
    masks[1, 5, 5] = True
    assert masks_at_stride(masks).astype(int).tolist() == [
        [[1, 1], [1, 1]],
        [[0, 0], [0, 1]],
        [[0, 0], [0, 0]],
    ]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (ObjectiveConfig, "soft_weight", -1.0),
        (ObjectiveConfig, "mask_weight", -1.0),
        (SuperpixelLossConfig, "alpha_1", 0.0),
        (SuperpixelLossConfig, "alpha_2", 0.0),
        (SuperpixelLossConfig, "purity", 0.5),
    ],
)
def test_settings_out_of_range_name_the_field(kind, name, value):
    with pytest.raises(OutOfBoundsError, match=f"^{name} is"):
        kind(**{name: value})


def test_the_pixel_wise_loss_needs_no_superpixels():
    assert ObjectiveConfig(mask_term="pixel").needs_superpixels
    assert not ObjectiveConfig(mask_term="pixel", soft_weight=0).needs_superpixels
