import argparse

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.eva import Eva

from engine.encoders import EncoderConfig, load_encoder
from engine.encoders.keys import KeyProjection, keep_keys_only
from engine.encoders.layout import IMAGENET_MEAN, IMAGENET_STD
from engine.encoders.vit import load_backbone
from engine.encoders.weights import digest_state
from engine.errors import ConfigurationError, WeightsError

TINY = "test_vit"
IMAGES = list(np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), np.uint8))


def config_of(name=TINY, **fields):
    return EncoderConfig(**{"name": name, "weights": "random", "image_size": 64, "batch_size": 2, **fields})


def new_model(name=TINY, seed=1, **arguments):
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=0, **arguments).eval()


def normalised(image):
    pixels = (image.astype(np.float64) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]


def hooked_keys(model, module, image, pick):
    """Keys by a plain forward pass through the whole model, caught behind a module of its last block."""
    block, outputs = model.blocks[-1], []
    handle = block.get_submodule(module).register_forward_hook(lambda *call: outputs.append(call[-1]))
    with torch.no_grad():
        model(normalised(image))
        handle.remove()
        keys = pick(block, outputs[0])[0, model.num_prefix_tokens :]
    grid = [side // patch for side, patch in zip(image.shape, model.patch_embed.patch_size, strict=False)]
    return torch.nn.functional.normalize(keys, dim=-1).reshape(*grid, -1)


def middle_third(_block, tokens):
    return tokens.chunk(3, dim=-1)[1]


def separate(_block, tokens):
    return tokens


def behind_norm(block, tokens):
    """Eva's fused map with biases of its own is no module call, so the keys are made from its input."""
    return tokens @ block.attn.qkv.weight.chunk(3)[1].T


def third_of_four(block, tokens):
    return tokens.split(block.in_split, dim=-1)[2]


KEY_CASES = [
    (TINY, "attn.qkv", middle_third),
    ("vit_small_patch14_reg4_dinov2", "attn.qkv", middle_third),
    ("deit_tiny_distilled_patch16_224", "attn.qkv", middle_third),
    ("vit_small_patch16_dinov3_qkvb", "norm1", behind_norm),
    ("eva02_tiny_patch14_224", "norm1", behind_norm),
    ("vit_small_patch16_rope_mixed_224", "attn.qkv", middle_third),
    ("vit_pwee_patch16_reg1_gap_256", "in_proj", third_of_four),  # with a norm on the keys behind it
]


def save(state, path):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return str(path)


def release_state(model, prefix="module.backbone."):
    """A timm model's weights as DINO's training writes them, projection head included."""
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    return {**state, prefix.replace("backbone.", "") + "head.mlp.0.weight": torch.ones(3)}


def shaken(model):
    """The model with all parameters moved: fresh ones leave biases at 0 and most blocks without effect."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.mark.parametrize(("name", "module", "pick"), KEY_CASES, ids=[case[0] for case in KEY_CASES])
def test_features_are_the_keys_of_the_last_attention(tmp_path, name, module, pick):
    model = shaken(new_model(name, dynamic_img_size=True))
    patch = model.patch_embed.patch_size[0]
    image = np.random.default_rng(1).integers(0, 256, (2 * patch, 5 * patch, 3), np.uint8)
    expected = hooked_keys(model, module, image, pick)
    path = save(model.state_dict(), tmp_path / "weights.safetensors")
    encoder = load_encoder(config_of(name, weights=path), "cpu")
    (features,) = encoder.encode([image])
    assert features.shape == (2, 5, encoder.feature_size)
    assert encoder.feature_size == expected.shape[-1]
    assert expected.flatten(0, 1).std(dim=0).max() > 0.01  # keys of patches differ, so order matters
    assert torch.allclose(features.float(), expected, atol=2e-3)


def keys_without_last_block(model):
    feature_size = keep_keys_only(model)
    with torch.no_grad():
        keys = model.forward_features(normalised(IMAGES[0]))[0, model.num_prefix_tokens :]
    assert keys.shape == (4 * 6, feature_size)
    return torch.nn.functional.normalize(keys, dim=-1).reshape(4, 6, -1)


def test_post_norm_block_projects_its_input_as_it_is():
    model = shaken(new_model("vit_base_patch16_rpn_224", dynamic_img_size=True, depth=2))
    expected = hooked_keys(model, "attn.qkv", IMAGES[0], middle_third)
    assert torch.allclose(keys_without_last_block(model), expected, atol=1e-5)


@pytest.mark.parametrize("attention", ["eva", "rope"])
def test_separate_projection_comes_before_norm_and_rotation(attention):
    model = Eva(
        img_size=64, patch_size=16, embed_dim=48, depth=2, num_heads=3, num_classes=0, qkv_fused=False,
        qk_norm=True, attn_type=attention, use_rot_pos_emb=True, dynamic_img_size=True,
    )  # fmt: skip
    model = shaken(model.eval())
    expected = hooked_keys(model, "attn.k_proj", IMAGES[0], separate)
    assert torch.allclose(keys_without_last_block(model), expected, atol=1e-5)


def test_parallel_attentions_give_the_keys_of_all():
    model = shaken(new_model("vit_small_patch16_18x2_224", dynamic_img_size=True, depth=2))
    expected = [hooked_keys(model, f"attns.{n}.attn.qkv", IMAGES[0], middle_third) for n in range(2)]
    keys = keys_without_last_block(model)
    assert keys.shape == (4, 6, 2 * 384)
    for part, branch in zip(keys.chunk(2, dim=-1), expected, strict=True):
        assert torch.allclose(torch.nn.functional.normalize(part, dim=-1), branch, atol=1e-5)


def test_unknown_blocks_are_refused():
    with pytest.raises(WeightsError, match="no key projection known in a ReLU"):
        KeyProjection(torch.nn.ReLU())


def test_features_do_not_depend_on_neighbours():
    encoder = load_encoder(config_of(batch_size=3), "cpu")
    together = encoder.encode(IMAGES)
    assert torch.equal(together[:1], encoder.encode(IMAGES[:1]))
    assert torch.equal(together[:2], encoder.encode(IMAGES[:2]))
    assert torch.equal(encoder.encode([IMAGES[0], IMAGES[2]])[:1], together[:1])
    assert torch.equal(encoder.encode(IMAGES + IMAGES)[3:], together)


def test_more_images_than_a_batch_keep_their_order():
    single = load_encoder(config_of(batch_size=1), "cpu")
    pairs = load_encoder(config_of(batch_size=2), "cpu")
    assert torch.allclose(single.encode(IMAGES).float(), pairs.encode(IMAGES).float(), atol=2e-3)


def test_size_is_the_largest_multiple_of_the_patch():
    encoder = load_encoder(config_of("vit_small_patch14_reg4_dinov2", image_size=60), "cpu")
    assert (encoder.image_size, encoder.grid, encoder.feature_size) == ((56, 56), (4, 4), 384)
    with pytest.raises(ConfigurationError, match="smaller than one patch"):
        load_encoder(config_of(image_size=15), "cpu")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_changes_little_and_leaves_as_float16(precision):
    exact = load_encoder(config_of(), "cpu").encode(IMAGES)
    rounded = load_encoder(config_of(precision=precision), "cpu").encode(IMAGES)
    assert rounded.dtype == torch.float16
    assert not torch.equal(exact, rounded)
    assert (exact.float() * rounded.float()).sum(dim=-1).min() > 0.99


def test_random_weights_are_a_function_of_the_seed_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = load_encoder(config_of(seed=7), "cpu")
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(6)
    again, other = load_encoder(config_of(seed=7), "cpu"), load_encoder(config_of(seed=8), "cpu")
    assert torch.equal(first.encode(IMAGES), again.encode(IMAGES))
    assert first.weights_digest == again.weights_digest != other.weights_digest


def test_digest_knows_neither_format_nor_prefix_nor_place(tmp_path):
    model = new_model()
    full = {
        "student": release_state(new_model(seed=2)),
        "teacher": release_state(model, prefix="backbone."),
        "args": argparse.Namespace(arch="vit_tiny"),
    }
    paths = [
        save(model.state_dict(), tmp_path / "a.safetensors"),
        save(model.state_dict(), tmp_path / "b.pth"),
        save(release_state(model), tmp_path / "c.pth"),
        save(full, tmp_path / "d.pth"),
    ]
    encoders = [load_encoder(config_of(weights=path), "cpu") for path in paths]
    assert len({encoder.weights_digest for encoder in encoders}) == 1
    features = [encoder.encode(IMAGES) for encoder in encoders]
    assert all(torch.equal(features[0], other) for other in features[1:])
    student = load_encoder(config_of(weights=save({"student": full["student"]}, tmp_path / "e.pth")), "cpu")
    assert student.weights_digest != encoders[0].weights_digest


def test_dinov2_release_names_are_understood(tmp_path):
    name = "vit_small_patch14_reg4_dinov2"
    model = shaken(new_model(name, dynamic_img_size=True, img_size=56))
    state = model.state_dict()
    release = {key: state[key] for key in state if key not in ("reg_token", "cls_token", "pos_embed")}
    release["register_tokens"] = state["reg_token"]
    release["mask_token"] = torch.zeros(1, 384)
    # The release adds a position to its class token; timm has the sum.
    release["pos_embed"] = torch.cat([torch.full((1, 1, 384), 0.25), state["pos_embed"]], dim=1)
    release["cls_token"] = state["cls_token"] - 0.25
    plain = load_encoder(config_of(name, weights=save(state, tmp_path / "timm.pth")), "cpu")
    released = load_encoder(config_of(name, weights=save(release, tmp_path / "release.pth")), "cpu")
    image = IMAGES[0][:56, :84]
    assert torch.allclose(plain.encode([image]).float(), released.encode([image]).float(), atol=1e-3)


def test_dinov3_release_names_are_understood(tmp_path):
    name = "vit_small_patch16_dinov3"
    state = shaken(new_model(name)).state_dict()
    renamed = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    release = {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}
    for key, tensor in state.items():
        stem, _, last = key.rpartition(".")
        release[(stem + "." if stem else "") + renamed.get(last, last)] = tensor
    empty = {f"blocks.{n}.attn.qkv.bias": torch.zeros(3 * 384) for n in range(12)}
    released = load_encoder(config_of(name, weights=save(release | empty, tmp_path / "r.pth")), "cpu")
    assert released.weights_digest == digest_state(state)
    full = {key: tensor + 1 for key, tensor in empty.items()}
    with pytest.raises(WeightsError, match="_qkvb"):
        load_encoder(config_of(name, weights=save(release | full, tmp_path / "b.pth")), "cpu")
    with_biases = load_encoder(config_of(f"{name}_qkvb", weights=str(tmp_path / "b.pth")), "cpu")
    assert with_biases.weights_digest != released.weights_digest


def test_position_embeddings_of_another_grid_are_resampled_once(tmp_path):
    model = new_model(img_size=80)
    path = save(model.state_dict(), tmp_path / "grid5.pth")
    loaded = load_backbone(config_of(weights=path)).model
    assert torch.equal(loaded.pos_embed, model.pos_embed)
    assert loaded.patch_embed.grid_size == (5, 5)
    wide = new_model(img_size=(64, 96))
    state = dict(model.state_dict())
    state["pos_embed"] = resample_abs_pos_embed(model.pos_embed, new_size=[4, 6], old_size=[5, 5])
    wide.load_state_dict(state)
    expected = hooked_keys(wide, "attn.qkv", IMAGES[0], middle_third)
    (features,) = load_encoder(config_of(weights=path), "cpu").encode(IMAGES[:1])
    assert torch.allclose(features.float(), expected, atol=2e-3)


def test_weights_that_do_not_fit_are_named(tmp_path):
    state = new_model().state_dict()
    del state["blocks.3.attn.qkv.weight"]
    state["blocks.4.attn.qkv.bias"] = torch.zeros(5)
    state["extra.weight"] = torch.zeros(1)
    path = save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError) as caught:
        load_encoder(config_of(weights=path), "cpu")
    message = str(caught.value)
    assert "\n" not in message
    assert "missing blocks.3.attn.qkv.weight;" in message
    assert "not expected extra.weight;" in message
    assert "blocks.4.attn.qkv.bias (5,), expected (192,)" in message
    state = new_model().state_dict()
    state["pos_embed"] = torch.zeros(1, 1 + 23, 64)
    with pytest.raises(WeightsError, match="24 position embeddings"):
        load_encoder(config_of(weights=save(state, tmp_path / "b.pth")), "cpu")


def test_classifier_may_be_there_or_not(tmp_path):
    with_head = timm.create_model(TINY, num_classes=3)
    path = save(with_head.state_dict(), tmp_path / "a.safetensors")
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_cpu():
    on_cpu = load_encoder(config_of(), "cpu").encode(IMAGES)
    on_gpu = load_encoder(config_of(), "cuda").encode(IMAGES)
    assert on_gpu.is_cuda
    assert (on_cpu.float() * on_gpu.cpu().float()).sum(dim=-1).min() > 0.9999
