"""Checkpoints in the namings of others against the models that they were written from."""

import re

import numpy as np
import pytest
import torch

from engine.encoders import EncoderConfig, load_encoder
from engine.encoders.naming import adapt_to, drop_heads, find_prefix, translate_names
from engine.encoders.weights import select_network
from engine.errors import WeightsError

DINOV2, DINOV2_REGISTERS = "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def loaded(checkpoint, model):
    """What a model would load from the flat names of a checkpoint."""
    expected = drop_heads(model.state_dict())
    return adapt_to(expected, select_network(checkpoint, expected, "a.pth"), "a.pth does not fit")


def hugging_face(state, attention="attention.attention", block="encoder.layer"):
    """A timm state in the naming of transformers' ViT, or of Dinov2 where it has layer scales."""
    is_dinov2 = "blocks.0.ls1.gamma" in state
    names = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "attn.proj": "attention.output.dense",
        "norm.": "layernorm.",
        "blocks.": f"{block}.",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    }
    if not is_dinov2:
        names |= {
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        }
    written = {}
    for name, tensor in state.items():
        if name in ("cls_token", "pos_embed"):
            written[f"embeddings.{'position_embeddings' if name == 'pos_embed' else name}"] = tensor
            continue
        new = name if name.startswith("norm.") else name.replace("norm.", "norm_.")
        for here, there in names.items():
            new = new.replace(here, there)
        if "attn.qkv" in new:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                written[new.replace("attn.qkv", f"{attention}.{part}")] = rows
        else:
            written[new] = tensor
    return written


@pytest.mark.parametrize("name", ["test_vit", DINOV2])
@pytest.mark.parametrize("prefix", ["", "vit.", "state_dict/model.backbone."])
def test_hugging_face_names_with_any_prefix(make_model, name, prefix):
    model = make_model(name, depth=2)
    state = hugging_face(model.state_dict())
    extra = {"embeddings.mask_token": torch.zeros(1), "pooler.dense.weight": torch.zeros(2)}
    checkpoint = {prefix + key: tensor for key, tensor in (state | extra).items()}
    assert f"{prefix}encoder.layer.1.attention.attention.key.bias" in checkpoint
    checkpoint |= {"classifier.weight": torch.ones(3), "decoder.decoder_norm.weight": torch.ones(4)}
    assert same(loaded(checkpoint, model), drop_heads(model.state_dict()))


def test_a_file_of_hugging_face_gives_the_same_features(make_model, save_weights):
    model = make_model()
    state = model.state_dict()
    contents = {
        "timm.safetensors": state,
        "hugging_face.bin": {f"vit.{key}": tensor for key, tensor in hugging_face(state).items()},
        "lightning.ckpt": {"state_dict": {f"net.{key}": tensor for key, tensor in state.items()}},
    }
    paths = [save_weights(content, name) for name, content in contents.items()]
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    configs = [EncoderConfig(name="test_vit", weights=path, image_size=48, batch_size=1) for path in paths]
    encoders = [load_encoder(config, "cpu") for config in configs]
    assert len({encoder.weights_digest for encoder in encoders}) == 1
    features = [encoder.encode([image]) for encoder in encoders]
    assert all(torch.equal(features[0], other) for other in features[1:])


def test_hugging_face_dinov2_with_registers_has_a_position_for_the_class_token(make_model):
    model = make_model(DINOV2_REGISTERS, depth=2)
    state = model.state_dict()
    registers = state.pop("reg_token")
    checkpoint = hugging_face(state) | {"embeddings.register_tokens": registers}
    positions = torch.cat([torch.full((1, 1, 384), 0.25), state["pos_embed"]], dim=1)
    checkpoint["embeddings.position_embeddings"] = positions
    checkpoint["embeddings.cls_token"] = state["cls_token"] - 0.25
    got = loaded(checkpoint, model)
    assert torch.allclose(got.pop("cls_token"), state["cls_token"], atol=1e-6)
    assert same(got, {name: tensor for name, tensor in model.state_dict().items() if name != "cls_token"})


def test_hugging_face_dinov3(make_model):
    model = make_model("vit_small_patch16_dinov3_qkvb", depth=2)
    checkpoint = {"embeddings.mask_token": torch.zeros(1, 1, 384), "rope_embeddings.inv_freq": torch.ones(16)}
    for name, tensor in model.state_dict().items():
        new = name.replace("blocks.", "layer.").replace("attn.", "attention.")
        for here, there in (
            ("attention.proj", "attention.o_proj"), ("gamma_1", "layer_scale1.lambda1"),
            ("gamma_2", "layer_scale2.lambda1"), ("mlp.fc1", "mlp.up_proj"), ("mlp.fc2", "mlp.down_proj"),
            ("q_bias", "q_proj.bias"), ("v_bias", "v_proj.bias"), ("reg_token", "embeddings.register_tokens"),
            ("cls_token", "embeddings.cls_token"), ("patch_embed.proj", "embeddings.patch_embeddings"),
        ):  # fmt: skip
            new = new.replace(here, there)
        if "qkv" in new:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                checkpoint[new.replace("qkv", f"{part}_proj")] = rows
        elif "k_bias" not in new:
            checkpoint[new] = tensor
    assert "layer.1.attention.k_proj.weight" in checkpoint
    assert same(loaded(checkpoint, model), drop_heads(model.state_dict()))


def test_the_release_of_dinov2_adds_a_position_to_its_class_token(make_model):
    model = make_model(DINOV2_REGISTERS, depth=2)
    state = model.state_dict()
    release = {**state, "mask_token": torch.zeros(1, 384), "register_tokens": state["reg_token"]}
    del release["reg_token"]
    release["pos_embed"] = torch.cat([torch.full((1, 1, 384), 0.25), state["pos_embed"]], dim=1)
    release["cls_token"] = state["cls_token"] - 0.25
    got = loaded(release, model)
    assert torch.allclose(got["cls_token"], state["cls_token"], atol=1e-6)
    assert same({**got, "cls_token": state["cls_token"]}, drop_heads(state))


def test_the_release_of_dinov3_may_have_biases(make_model):
    model, with_biases = (make_model(f"vit_small_patch16_dinov3{end}", depth=2) for end in ("", "_qkvb"))
    renamed = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    release = {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}
    for name, tensor in model.state_dict().items():
        stem, dot, last = name.rpartition(".")
        release[stem + dot + renamed.get(last, last)] = tensor
    biases = {f"blocks.{n}.attn.qkv.bias": torch.zeros(3 * 384) for n in range(2)}
    assert same(loaded(release | biases, model), drop_heads(model.state_dict()))
    biases["blocks.1.attn.qkv.bias"] = torch.arange(3.0).repeat_interleave(384)
    with pytest.raises(WeightsError, match=r"query and value biases.*_qkvb"):
        loaded(release | biases, model)
    got = loaded(release | biases, with_biases)
    assert got["blocks.1.attn.v_bias"].unique().tolist() == [2.0]
    assert got["blocks.1.attn.q_bias"].unique().tolist() == [0.0]


def test_dinov2_training_checkpoints_hold_chunks_of_blocks_below_the_teacher(make_model):
    model = make_model(DINOV2, depth=3)
    checkpoint = {"teacher.dino_head.mlp.0.weight": torch.ones(2)}
    for name, tensor in model.state_dict().items():
        chunked = re.sub(r"blocks\.(\d)", lambda match: f"blocks.{int(match[1]) // 2}.{match[1]}", name)
        checkpoint[f"teacher.backbone.{chunked}"] = tensor
    assert "teacher.backbone.blocks.1.2.attn.qkv.bias" in checkpoint
    assert same(loaded(checkpoint, model), drop_heads(model.state_dict()))


@pytest.mark.parametrize(
    ("best", "other"),
    [
        ("teacher/backbone.", "student/backbone."),
        ("model_ema/", "model/"),
        ("state_dict_ema/", "state_dict/"),
        ("teacher_backbone.vit.", "student_backbone.vit."),
        ("state_dict/ema_model.module.", "state_dict/model."),
        ("target_encoder/module.", "encoder/module."),
        ("module/", "optimizer/state/"),
        ("state_dict/net.encoder._orig_mod.", "state_dict/net.decoder."),
    ],
)
def test_the_averaged_network_is_preferred_whatever_the_prefix(make_model, best, other):
    model, worse = make_model(depth=2), make_model(seed=3, depth=2)
    checkpoint = {}
    if "optimizer" not in other and "decoder" not in other:
        checkpoint |= {other + name: tensor for name, tensor in worse.state_dict().items()}
    checkpoint |= {f"{other}0.exp_avg": torch.ones(2), "epoch": torch.ones(())}
    checkpoint |= {best + name: tensor for name, tensor in model.state_dict().items()}
    assert same(loaded(checkpoint, model), drop_heads(model.state_dict()))


def test_masked_autoencoders_lose_their_decoder(make_model):
    model = make_model(depth=2)
    extra = ["mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.norm1.weight"]
    checkpoint = {
        f"model.{name}": torch.ones(3) for name in [*extra, "decoder_norm.bias", "decoder_pred.bias"]
    }
    checkpoint |= {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    assert same(loaded(checkpoint, model), drop_heads(model.state_dict()))


def test_clip_towers_are_split_off_their_text(make_model):
    model = make_model("vit_base_patch32_clip_224", depth=2)
    names = {
        "patch_embed.proj": "conv1", "norm_pre": "ln_pre",
        "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj",
        "norm1": "ln_1", "norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
        "blocks.": "transformer.resblocks.",
    }  # fmt: skip
    state = model.state_dict()
    checkpoint = {
        "visual.class_embedding": state["cls_token"][0, 0],
        "visual.positional_embedding": state["pos_embed"][0],
        "visual.proj": torch.ones(4),
        "transformer.resblocks.0.ln_1.weight": torch.ones(3),
    }
    for name in state.keys() - {"cls_token", "pos_embed"}:
        new = "ln_post" + name.removeprefix("norm") if name.startswith("norm.") else name
        for here, there in names.items():
            new = new.replace(here, there)
        checkpoint[f"visual.{new}"] = state[name]
    assert same(loaded(checkpoint, model), drop_heads(state))


def test_incomplete_attention_is_refused(make_model):
    model = make_model(depth=2)
    checkpoint = hugging_face(model.state_dict())
    del checkpoint["encoder.layer.0.attention.attention.value.weight"]
    with pytest.raises(WeightsError, match=r"a.pth does not fit: blocks\.0\.attn\.q.* has no key or value"):
        loaded(checkpoint, model)


def test_prefix_is_the_most_complete_then_the_shortest():
    expected = ["a", "b.c", "d"]
    assert find_prefix(["x.a", "x.b.c", "y.a", "ema.a", "ema.d.e"], expected) == "x."
    assert find_prefix(["a", "b.c", "z.a", "z.b.c"], expected) == ""
    assert find_prefix(["x.y.a", "m.a"], expected) == "m."
    assert find_prefix(["x/y/a", "x/b.c"], expected) == "x/"
    assert find_prefix(["e", "f"], expected) is None
    assert find_prefix([], []) is None


@pytest.mark.parametrize(
    "name",
    ["test_vit", "vit_small_patch16_dinov3", "eva02_tiny_patch14_224", "vit_pwee_patch16_reg1_gap_256"],
)
def test_names_of_timm_stay_as_they_are(make_model, name):
    state = make_model(name, depth=1).state_dict()
    assert same(translate_names(state), state)
