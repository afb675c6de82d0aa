"""The superpixel-guided loss against a literal implementation of its equations."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.evaluation.ground_truth import read_ground_truth
from engine.solo.losses import pixel_mask_loss
from engine.solo.superpixel_loss import (
    MixedPixels,
    hard_loss,
    has_positive,
    soft_loss,
    soft_targets,
    superpixel_probabilities,
)
from engine.solo.superpixel_targets import (
    IGNORED,
    NEGATIVE,
    POSITIVE,
    SuperpixelLossConfig,
    superpixel_states,
    superpixel_targets,
)
from engine.superpixels import SuperpixelConfig, segment
from engine.superpixels.graph import build_graph
from engine.superpixels.hierarchy import number_by_first_pixel

CONFIG = SuperpixelLossConfig()
ALPHA_1, ALPHA_2, PURITY = 0.05, 0.001, 0.75


def blocks_case(seed):
    """A 24 x 32 image of 4 x 4 blocks, whose right quarter is off the image, its superpixels and 3 masks."""
    rng = np.random.default_rng(seed)
    blocks = number_by_first_pixel(rng.integers(0, 6, (6, 8))).repeat(4, axis=0).repeat(4, axis=1)
    colours = (rng.random((blocks.max() + 1, 3)) * 0.1 + 0.4).astype(np.float32)
    image = (colours[blocks] + rng.normal(0, 0.05, (24, 32, 3))).clip(0, 1).astype(np.float32)
    labels = blocks.astype(np.int32)
    labels[:, 24:] = -1
    labels[labels >= 0] = number_by_first_pixel(labels[labels >= 0][None])[0]
    image[:, 24:] = 0
    # Unions of whole superpixels, with some blocks flipped so that superpixels become impure.
    chosen = (rng.random((3, labels.max() + 1)) < 0.5)[:, labels]
    flipped = (rng.random((3, 6, 8)) < 0.2).repeat(4, axis=1).repeat(4, axis=2)
    return image, labels, (chosen ^ flipped) & (labels >= 0)


def reference_losses(probabilities, image, labels, masks):
    """Hard and soft loss of each mask for probabilities (N, h, w) at the mask stride."""
    coarse_colours = image.reshape(6, 4, 8, 4, 3).mean(axis=(1, 3))
    coarse_labels = labels[::4, ::4]
    count = labels.max() + 1
    means = [image[labels == k].mean(axis=0) for k in range(count)]
    psi = reference_affinities(labels, means)
    hard, soft = [], []
    for m, mask in zip(probabilities, masks, strict=True):
        regions = []
        for k in range(count):
            top = bottom = 0.0
            for y, x in zip(*np.nonzero(coarse_labels == k), strict=True):
                delta = math.exp(-((means[k] - coarse_colours[y, x]) ** 2).sum() / ALPHA_1)
                top, bottom = top + m[y, x] * delta, bottom + delta
            regions.append(top / bottom)
        targets = [sum(psi[k][n] * regions[n] for n in range(count)) / sum(psi[k]) for k in range(count)]
        soft.append(np.mean([abs(p - t) for p, t in zip(regions, targets, strict=True)]))
        hard.append(reference_hard(regions, coarse_labels, [mask[labels == k].mean() for k in range(count)]))
    return np.array(hard), np.array(soft)


def reference_hard(regions, coarse_labels, shares, probabilities=None, coarse_mask=None):
    """Dice and cross-entropy over the labelled superpixels, and over the pixels of the others if given."""
    entropy = overlap = squares = total = 0.0
    for k, share in enumerate(shares):
        area = (coarse_labels == k).sum()
        if share >= PURITY:
            entropy -= area * math.log(regions[k])
            overlap += area * regions[k]
            squares += area * (regions[k] ** 2 + 1)
        elif share <= 1 - PURITY:
            entropy -= area * math.log(1 - regions[k])
            squares += area * regions[k] ** 2
        elif probabilities is None:
            continue
        else:
            for y, x in zip(*np.nonzero(coarse_labels == k), strict=True):
                p, is_in = probabilities[y, x], coarse_mask[y, x]
                entropy -= math.log(p if is_in else 1 - p)
                overlap += p * is_in
                squares += p**2 + is_in
        total += area
    return 1 - 2 * overlap / squares + entropy / total


def reference_affinities(labels, means):
    """psi from the minimax path weights of the whole adjacency graph, by Floyd-Warshall."""
    count = len(means)
    bottleneck = np.full((count, count), np.inf)
    np.fill_diagonal(bottleneck, 0)
    for here, there in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        for m, n in zip(here.ravel(), there.ravel(), strict=True):
            # No path leads through the area off the image.
            if m != n and m >= 0 and n >= 0:
                bottleneck[m, n] = bottleneck[n, m] = ((means[m] - means[n]) ** 2).sum()
    for k in range(count):
        through = np.maximum(bottleneck[:, k, None], bottleneck[None, k])
        bottleneck = np.minimum(bottleneck, through)
    return np.exp(-bottleneck / ALPHA_2).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_losses_equal_the_equations(seed):
    image, labels, masks = blocks_case(seed)
    probabilities = np.random.default_rng(seed).uniform(0.02, 0.98, (len(masks), 6, 8))
    hard, soft = reference_losses(probabilities, image, labels, masks)
    targets = superpixel_targets(image, labels, masks, CONFIG)
    regions = superpixel_probabilities(
        torch.from_numpy(probabilities).flatten(1),
        targets.labels,
        targets.weights.double(),
        len(targets.affinities),
    )
    states, affinities = targets.states, targets.affinities.double()
    assert {POSITIVE, NEGATIVE, IGNORED} == set(states.flatten().tolist())
    np.testing.assert_allclose(hard_loss(regions, states, targets.areas), hard, rtol=1e-5)
    np.testing.assert_allclose(soft_loss(regions, soft_targets(regions, affinities)), soft, rtol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_mixed_superpixels_enter_the_loss_pixel_by_pixel(seed):
    image, labels, masks = blocks_case(seed)
    probabilities = torch.from_numpy(np.random.default_rng(seed).uniform(0.02, 0.98, (len(masks), 6, 8)))
    targets = superpixel_targets(image, labels, masks, CONFIG)
    coarse_masks, coarse_labels = masks[:, ::4, ::4], labels[::4, ::4]
    pixels, states = targets.labels, targets.states
    on_image = torch.from_numpy(coarse_labels >= 0).flatten()
    regions = superpixel_probabilities(
        probabilities.flatten(1), pixels, targets.weights.double(), states.shape[1]
    )
    mixed = MixedPixels(
        probabilities=probabilities.flatten(1),
        targets=torch.from_numpy(coarse_masks).flatten(1).double(),
        weights=((states == IGNORED)[:, pixels] & on_image).double(),
    )
    found = hard_loss(regions, states, targets.areas, mixed)
    for n, mask in enumerate(masks):
        shares = [mask[labels == k].mean() for k in range(states.shape[1])]
        expected = reference_hard(
            regions[n].tolist(), coarse_labels, shares, probabilities[n].numpy(), coarse_masks[n]
        )
        assert found[n].item() == pytest.approx(expected, rel=1e-5)
    # Without labelled superpixels this is the pixel-wise loss.
    nothing = torch.full_like(states, IGNORED)
    all_mixed = replace(mixed, weights=on_image.expand(len(masks), -1).double())
    expected = pixel_mask_loss(mixed.probabilities.logit(), mixed.targets, on_image.double())
    found = hard_loss(regions, nothing, targets.areas, all_mixed)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_gradients_equal_finite_differences():
    image, labels, masks = blocks_case(0)
    # A large alpha_2 keeps P and P^ apart, as |P - P^| has no derivative at 0.
    targets = superpixel_targets(image, labels, masks, SuperpixelLossConfig(alpha_2=0.1))
    pixels, weights = targets.labels, targets.weights.double()
    affinities = targets.affinities.double()
    states, areas = targets.states, targets.areas
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 48, generator=generator, dtype=torch.float64, requires_grad=True)
    # The target is detached, so finite differences must keep it constant too.
    constant = soft_targets(
        superpixel_probabilities(logits.sigmoid(), pixels, weights, len(affinities)), affinities
    )
    assert not constant.requires_grad

    def loss(values):
        regions = superpixel_probabilities(values.sigmoid(), pixels, weights, len(affinities))
        return hard_loss(regions, states, areas) + soft_loss(regions, constant)

    assert torch.autograd.gradcheck(loss, (logits,))


def test_states_worked_by_hand():
    labels = np.int32([[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, -1, -1]])
    masks = np.zeros((4, 1, 12), bool)
    masks[0, 0, 1:6] = True  # 3 of 4, 2 of 4, none
    masks[1, 0, 3:10] = True  # 1 of 4, all, all
    masks[3, 0, 8] = True  # none, none, 1 of 2
    assert superpixel_states(labels, masks, 0.75).tolist() == [
        [POSITIVE, IGNORED, NEGATIVE],
        [NEGATIVE, POSITIVE, POSITIVE],
        [NEGATIVE, NEGATIVE, NEGATIVE],
        [NEGATIVE, NEGATIVE, IGNORED],
    ]
    assert superpixel_states(labels, masks, 1.0)[:2].tolist() == [
        [IGNORED, IGNORED, NEGATIVE],
        [IGNORED, POSITIVE, POSITIVE],
    ]


def test_has_positive_is_false_for_instances_without_a_positive_superpixel():
    states = torch.tensor([[POSITIVE, IGNORED], [NEGATIVE, IGNORED], [IGNORED, IGNORED]])
    assert has_positive(states).tolist() == [True, False, False]
    nothing_labelled = hard_loss(torch.tensor([[0.3, 0.7]]), states[2:], torch.ones(2))
    assert nothing_labelled.tolist() == [1.0]


def test_superpixels_of_one_pixel_give_the_pixel_wise_loss():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    masks = (torch.rand(2, 12, generator=generator) < 0.4).double()
    valid = (torch.arange(12) < 9).double()
    expected = pixel_mask_loss(logits, masks, valid)
    # Superpixels off the image have area 0.
    torch.testing.assert_close(hard_loss(logits.sigmoid(), masks.to(torch.int8), valid), expected)


def test_the_loss_of_a_leak_depends_on_area_and_not_on_distance():
    states = torch.tensor([[POSITIVE, NEGATIVE, NEGATIVE, NEGATIVE]])
    near, far = torch.tensor([[0.9, 0.6, 0.1, 0.1]]), torch.tensor([[0.9, 0.1, 0.1, 0.6]])
    torch.testing.assert_close(hard_loss(near, states, torch.ones(4)), hard_loss(far, states, torch.ones(4)))
    larger = hard_loss(far, states, torch.tensor([1.0, 1.0, 1.0, 2.0]))
    assert larger > hard_loss(far, states, torch.ones(4))


def test_superpixels_that_vanish_at_the_mask_stride_are_left_out():
    labels = np.zeros((8, 8), np.int32)
    labels[0, 0] = 1
    labels[:, 4:] = 2
    masks = np.zeros((1, 8, 8), bool)
    masks[0, :, 4:] = True
    targets = superpixel_targets(np.full((8, 8, 3), 0.5, np.float32), labels, masks, CONFIG)
    assert targets.states.tolist() == [[NEGATIVE, POSITIVE]]
    assert targets.labels.tolist() == [0, 1, 0, 1]
    assert targets.areas.tolist() == [2, 2]
    np.testing.assert_allclose(targets.affinities, 0.5)


def true_mask_terms(image, masks, alpha_2, num_segments=600):
    """Mean P^ inside and outside, and the soft loss, for true masks (N, H, W) as predictions."""
    unit = image.astype(np.float32) / 255
    labels = segment(image, SuperpixelConfig(num_segments=num_segments))
    graph = build_graph(unit, labels)
    affinities = torch.from_numpy(graph.affinities(alpha_2))
    affinities = affinities / affinities.sum(dim=1, keepdim=True)
    areas = np.bincount(labels.ravel())
    inside = np.stack([np.bincount(labels[mask], minlength=len(areas)) for mask in masks])
    regions = torch.from_numpy(inside / areas).float()
    targets = soft_targets(regions, affinities)
    is_inside, is_outside = regions == 1, regions == 0
    return (
        (targets * is_inside).sum(1) / is_inside.sum(1),
        (targets * is_outside).sum(1) / is_outside.sum(1),
        soft_loss(regions, targets),
    )


def test_alpha_2_separates_a_disc_from_its_background(photograph):
    image = photograph(3)
    bright = image.mean(axis=2) > (float(image.min()) + float(image.max())) / 2
    inside, outside, loss = true_mask_terms(image, bright[None], ALPHA_2, 60)
    assert inside > 0.95
    assert outside < 0.01
    assert loss < 0.01
    _, _, wide_loss = true_mask_terms(image, bright[None], 10.0, 60)
    assert wide_loss > 10 * loss


@pytest.mark.slow
def test_alpha_2_separates_true_objects_and_0_3_does_not(development_data):
    """On true COCO masks P^ is about 0.85 inside and 0.01 outside, and L_soft 0.02 (docs/methods.md, 4)."""
    from PIL import Image

    found = {ALPHA_2: [], 0.3: []}
    folder = development_data("data/coco")
    for annotated in read_ground_truth(str(folder)):
        image, masks = np.asarray(Image.open(folder / annotated.path).convert("RGB")), annotated.masks()
        shares = masks.mean(axis=(1, 2))
        masks = masks[(shares > 0.02) & (shares < 0.5)][:2]
        for alpha_2, rows in found.items():
            terms = true_mask_terms(image, masks, alpha_2) if len(masks) else ()
            rows.extend(row for row in zip(*terms, strict=True) if not row[0].isnan())
        if len(found[0.3]) >= 40:
            break
    inside, outside, loss = np.array(found[ALPHA_2])[:40].mean(axis=0)
    assert inside > 0.7
    assert outside < 0.05
    assert loss < 0.04
    inside_wide, outside_wide, loss_wide = np.array(found[0.3])[:40].mean(axis=0)
    assert inside_wide - outside_wide < 0.1
    assert loss_wide > 3 * loss
