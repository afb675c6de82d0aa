"""Transformers with weights of every source."""

import argparse

import numpy as np
import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from engine.encoders import EncoderConfig, load_encoder
from engine.encoders.backbone import load_backbone
from engine.encoders.layout import IMAGENET_MEAN, IMAGENET_STD
from engine.errors import WeightsError

TINY = "test_vit"
IMAGES = list(np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), np.uint8))


def config_of(name=TINY, **fields):
    return EncoderConfig(**{"name": name, "weights": "random", "image_size": 64, "batch_size": 2, **fields})


def release_state(model, prefix="module.backbone."):
    """A timm model's weights as DINO's training writes them, projection head included."""
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    return {**state, prefix.replace("backbone.", "") + "head.mlp.0.weight": torch.ones(3)}


def test_digest_knows_neither_format_nor_prefix_nor_place(make_model, save_weights):
    model = make_model()
    full = {
        "student": release_state(make_model(seed=2)),
        "teacher": release_state(model, prefix="backbone."),
        "args": argparse.Namespace(arch="vit_tiny"),
    }
    paths = [
        save_weights(model.state_dict(), "a.safetensors"),
        save_weights(model.state_dict(), "b.pth"),
        save_weights(release_state(model), "c.pth"),
        save_weights(full, "d.pth"),
    ]
    encoders = [load_encoder(config_of(weights=path), "cpu") for path in paths]
    assert len({encoder.weights_digest for encoder in encoders}) == 1
    features = [encoder.encode(IMAGES) for encoder in encoders]
    assert all(torch.equal(features[0], other) for other in features[1:])
    student = load_encoder(config_of(weights=save_weights({"student": full["student"]}, "e.pth")), "cpu")
    assert student.weights_digest != encoders[0].weights_digest


def test_position_embeddings_of_another_grid_are_resampled_once(make_model, save_weights):
    model = make_model(img_size=80)
    state = dict(model.state_dict())
    path = save_weights(state, "grid5.pth")
    loaded = load_backbone(config_of(weights=path)).model
    assert torch.equal(loaded.pos_embed, model.pos_embed)
    assert loaded.patch_embed.grid_size == (5, 5)
    state["pos_embed"] = resample_abs_pos_embed(model.pos_embed, new_size=[4, 4], old_size=[5, 5])
    square = [image[:, :64] for image in IMAGES]
    expected = load_encoder(config_of(weights=save_weights(state, "grid4.pth")), "cpu").encode(square)
    features = load_encoder(config_of(weights=path), "cpu").encode(square)
    assert torch.allclose(features.float(), expected.float(), atol=2e-3)


def test_weights_that_do_not_fit_are_named(make_model, save_weights):
    state = make_model().state_dict()
    del state["blocks.3.attn.qkv.weight"]
    state["blocks.4.attn.qkv.bias"] = torch.zeros(5)
    state["extra.weight"] = torch.zeros(1)
    path = save_weights(state, "a.pth")
    with pytest.raises(WeightsError) as caught:
        load_encoder(config_of(weights=path), "cpu")
    message = str(caught.value)
    assert "\n" not in message
    assert "missing blocks.3.attn.qkv.weight;" in message
    assert "not expected extra.weight;" in message
    assert "blocks.4.attn.qkv.bias (5,), expected (192,)" in message
    state = make_model().state_dict()
    state["pos_embed"] = torch.zeros(1, 1 + 23, 64)
    with pytest.raises(WeightsError, match=r"24 position embeddings, the model has 101, .*square"):
        load_encoder(config_of(weights=save_weights(state, "b.pth")), "cpu")


def test_classifier_may_be_there_or_not(make_model, save_weights):
    with_head = timm.create_model(TINY, num_classes=3)
    path = save_weights(with_head.state_dict(), "a.safetensors")
    assert load_encoder(config_of(weights=path), "cpu").feature_size == 64


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_other_architectures_are_refused(name):
    with pytest.raises(WeightsError, match="give a VisionTransformer or Eva"):
        load_encoder(config_of(name), "cpu")


def test_unknown_names_get_suggestions():
    with pytest.raises(
        WeightsError, match=r"no model 'vit_bas_patch8_224': did you mean vit_base_patch8_224,"
    ):
        load_encoder(config_of("vit_bas_patch8_224"), "cpu")
    with pytest.raises(WeightsError, match=r"did you mean vit_base_patch8_224.dino"):
        load_encoder(config_of("vit_base_patch8_224.dinoo"), "cpu")
    with pytest.raises(WeightsError, match=r"did you mean vit_small_patch14_dinov2\.lvd142m\?"):
        load_encoder(config_of("dinov2_vits14"), "cpu")
    with pytest.raises(WeightsError, match="list_models"):
        load_encoder(config_of("0123456789"), "cpu")


def test_hub_that_cannot_be_reached_says_so(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "nowhere")
    with pytest.raises(WeightsError, match=r"offline.*--weights FILE"):
        load_encoder(config_of(f"{TINY}.r160_in1k", weights="hub"), "cpu")
    with pytest.raises(WeightsError, match="publishes no weights for 'vit_small_patch16_18x2_224'"):
        load_encoder(config_of("vit_small_patch16_18x2_224", weights="hub"), "cpu")


def test_statistics_are_the_tags_or_imagenets():
    assert load_backbone(config_of()).mean == IMAGENET_MEAN
    assert load_backbone(config_of()).std == IMAGENET_STD
    assert load_backbone(config_of("vit_tiny_patch16_224.augreg_in21k")).mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "replaced", "complaint"),
    [
        (TINY, {"reg_token": torch.zeros(1, 4, 64)}, "they have 4 register tokens, the model has 0"),
        ("test_vit2", {"reg_token": None}, "they have 0 register tokens, the model has 1"),
        (
            TINY,
            {"patch_embed.proj.weight": torch.zeros(64, 3, 8, 8)},
            "their patches are 8 x 8 pixels, the model's 16 x 16",
        ),
    ],
)
def test_registers_and_patches_of_another_model_are_told(make_model, save_weights, name, replaced, complaint):
    state = {**make_model(name).state_dict(), **replaced}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(WeightsError, match=f"{complaint}: give --encoder with the name of") as caught:
        load_encoder(config_of(name, weights=save_weights(state, "a.safetensors")), "cpu")
    assert "\n" not in str(caught.value)


def test_the_architecture_with_other_registers_is_suggested(make_model, save_weights):
    path = save_weights(make_model("vit_small_patch14_dinov2", depth=4).state_dict(), "a.safetensors")
    with pytest.raises(WeightsError, match=r"0 register tokens.*give --encoder vit_small_patch14_dinov2$"):
        load_encoder(config_of("vit_small_patch14_reg4_dinov2", weights=path), "cpu")


def test_deeper_weights_are_refused(make_model, save_weights):
    path = save_weights(make_model(depth=7).state_dict(), "deep.pth")
    with pytest.raises(WeightsError, match=r"not expected blocks\.6\.attn\.proj\.bias"):
        load_encoder(config_of(weights=path), "cpu")


def test_other_networks_are_told_by_name(make_model, save_weights):
    beit = make_model().state_dict() | {"blocks.0.attn.relative_position_bias_table": torch.ones(2)}
    with pytest.raises(WeightsError, match="are a BEiT or Swin Transformer: give a Vision Transformer"):
        load_encoder(config_of(weights=save_weights(beit, "beit.pth")), "cpu")
    resnet = timm.create_model("resnet18").state_dict()
    with pytest.raises(WeightsError, match="are a ResNet"):
        load_encoder(config_of(weights=save_weights(resnet, "resnet.pth")), "cpu")


def test_half_precision_weights_are_computed_in_float32(make_model, save_weights):
    state = {name: tensor.half() for name, tensor in make_model().state_dict().items()}
    exact = {name: tensor.float() for name, tensor in state.items()}
    half = load_encoder(config_of(weights=save_weights(state, "half.safetensors")), "cpu")
    full = load_encoder(config_of(weights=save_weights(exact, "full.safetensors")), "cpu")
    assert half.weights_digest == full.weights_digest
    assert torch.equal(half.encode(IMAGES), full.encode(IMAGES))
