from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from engine.errors import WeightsError
from engine.masks.rle import cross_ious, decode_rles
from engine.solo.config import DetectionConfig
from engine.solo.inference import detect, find_instances, fit_image, fit_size, matrix_nms
from engine.solo.layers import FrozenBatchNorm, with_coordinates
from engine.solo.network import SoloOutputs, build_network


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "vit_tiny_patch16_224"])
def test_every_backbone_gives_the_same_shapes(tiny_solo, backbone):
    network = build_network(replace(tiny_solo, backbone=backbone, image_size=96))
    outputs = network(torch.rand(2, 3, 96, 96))
    assert outputs.objectness.shape == (2, 64 + 36 + 16 + 9 + 4)
    assert outputs.kernels.shape == (2, 129, 16)
    assert outputs.mask_features.shape == (2, 16, 24, 24)
    assert outputs.mask_logits(1, torch.tensor([3, 77])).shape == (2, 24, 24)
    # The prior before training is low.
    assert outputs.objectness.sigmoid().max() < 0.05


def test_a_patch_size_that_does_not_divide_the_image(tiny_solo):
    network = build_network(replace(tiny_solo, backbone="vit_small_patch14_dinov2"))
    assert network(torch.rand(1, 3, 64, 64)).mask_features.shape == (1, 16, 16, 16)


def test_the_seed_determines_the_weights_and_global_state_is_kept(tiny_solo):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (build_network(replace(tiny_solo, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_norms_are_group_norm_from_scratch_and_frozen_with_weights(tiny_solo, tmp_path):
    assert not any(isinstance(m, nn.BatchNorm2d) for m in build_network(tiny_solo).modules())
    torch.manual_seed(0)
    whole = timm.create_model("test_resnet").eval()
    for module in whole.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    path = tmp_path / "resnet.safetensors"
    save_file(whole.state_dict(), path)
    config = replace(tiny_solo, backbone_weights=str(path))
    network = build_network(config)
    assert any(isinstance(m, FrozenBatchNorm) for m in network.modules())
    images = torch.rand(1, 3, 64, 64)
    expected = whole.forward_features((images - network.backbone.mean) / network.backbone.std)
    torch.testing.assert_close(network.backbone(images)[-1], expected, rtol=1e-3, atol=1e-4)
    # Without `pretrained` the structure is the same and the file is not read.
    path.unlink()
    build_network(config, pretrained=False).load_state_dict(network.state_dict())


@pytest.mark.parametrize(
    ("backbone", "weights", "message"),
    [
        ("resnet1000", "random", "knows no model"),
        ("mixer_b16_224", "random", "no feature maps"),
        ("test_resnet", "/nowhere/weights.pth", "no weights at"),
    ],
)
def test_unsuitable_backbones_are_refused(tiny_solo, backbone, weights, message):
    with pytest.raises(WeightsError, match=message):
        build_network(replace(tiny_solo, backbone=backbone, backbone_weights=weights))


def test_weights_of_another_network_are_refused(tiny_solo, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"conv1.weight": torch.ones(2, 2)}, path)
    with pytest.raises(WeightsError, match="do not fit"):
        build_network(replace(tiny_solo, backbone_weights=str(path)))


def test_coordinates_of_pixel_centres():
    both = with_coordinates(torch.zeros(1, 1, 1, 2))[0, 1:]
    assert both.tolist() == [[[-0.5, 0.5]], [[0.0, 0.0]]]


def test_matrix_nms_equals_the_equation():
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(7, 60, generator=generator) < 0.6).float()
    iou = np.zeros((7, 7))
    for i in range(7):
        for j in range(7):
            iou[i, j] = (masks[i] * masks[j]).sum() / (masks[i] + masks[j]).clamp(max=1).sum()
    expected = [1.0]
    for j in range(1, 7):
        decays = []
        for i in range(j):
            worst = max((iou[k, i] for k in range(i)), default=0.0)
            decays.append(np.exp(-2.0 * iou[i, j] ** 2) / np.exp(-2.0 * worst**2))
        expected.append(min(1.0, *decays))
    np.testing.assert_allclose(matrix_nms(masks, 2.0), expected, rtol=1e-5)
    assert matrix_nms(torch.zeros(0, 60), 2.0).shape == (0,)


def two_objects():
    """Outputs whose masks are the left half (cells 0, 1, 4), the right half (2) and empty (3); 4 has a low
    score."""
    features = torch.zeros(1, 2, 8, 8)
    features[0, 0, :, :4] = features[0, 1, :, 4:] = 1.0
    kernels = torch.tensor([[[9.0, -9.0], [8.0, -8.0], [-9.0, 9.0], [-9.0, -9.0], [9.0, -9.0]]])
    objectness = torch.tensor([[2.0, 1.0, 0.0, 3.0, -5.0]])
    return SoloOutputs(objectness=objectness, kernels=kernels, mask_features=features)


def test_scores_of_duplicates_are_lowered_and_empty_masks_dropped():
    found = detect(two_objects(), 0, DetectionConfig())
    # The duplicate of the first scores 0.73 exp(-2) = 0.099.
    np.testing.assert_allclose(found.scores, [0.8807, 0.4999, 0.0989], atol=2e-3)
    assert (found.probabilities[0, :, :4] > 0.5).all()
    assert len(detect(two_objects(), 0, DetectionConfig(min_score_after_nms=0.2)).scores) == 2
    assert len(detect(two_objects(), 0, DetectionConfig(min_score=0.9999)).scores) == 0


def test_images_are_fitted_into_the_square():
    assert fit_size((100, 50), 64) == (64, 32)
    assert fit_size((3, 3000), 64) == (1, 64)
    square = fit_image(np.full((100, 50, 3), 7, np.uint8), 64)
    assert square.shape == (64, 64, 3)
    assert (square[:, :32] == 7).all()
    assert (square[:, 32:] == 0).all()


def test_instances_have_the_size_of_their_image(tiny_solo):
    network = build_network(tiny_solo).eval()
    nn.init.constant_(network.category_head.prediction.bias, 2.0)
    images = [np.full(shape, 90, np.uint8) for shape in ((30, 70, 3), (200, 90, 3), (1, 1, 3))]
    found = find_instances(network, images, tiny_solo)
    assert [instances.size for instances in found] == [(30, 70), (200, 90), (1, 1)]
    for instances in found:
        assert len(instances) <= 50
        assert decode_rles(instances.rles, instances.size).any(axis=(1, 2)).all()
        assert (np.diff(instances.scores) <= 0).all()
    assert find_instances(network, [], tiny_solo) == []
    # A batch of one and a batch of three differ by rounding.
    (one,) = find_instances(network, images[:1], tiny_solo)
    np.testing.assert_allclose(one.scores, found[0].scores, rtol=1e-4)
    assert np.diag(cross_ious(one.rles, found[0].rles, one.size)).min() > 0.95
