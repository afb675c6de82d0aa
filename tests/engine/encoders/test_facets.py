"""Facets of blocks against a plain forward pass through the whole model."""

import pytest
import torch
from timm.models.eva import Eva

from engine.encoders.facets import AttentionProjection, keep_facet, key_parameters, key_vectors
from engine.errors import ConfigurationError, WeightsError

PROJECTIONS = ("query", "key", "value")
DEPTH = 3
IMAGES = torch.randn(1, 3, 32, 80, generator=torch.Generator().manual_seed(0))


def caught(model, module):
    """Inputs and outputs of a module in a forward pass."""
    calls = []
    handle = model.get_submodule(module).register_forward_hook(lambda *call: calls.append(call[1:]))
    with torch.no_grad():
        model.forward_features(IMAGES)
    handle.remove()
    ((inputs,), output) = calls[0]
    return inputs, output


def facet_of(model, facet, layer=-1):
    feature_size = keep_facet(model, facet, layer)
    with torch.no_grad():
        features = model.forward_features(IMAGES)
    assert features.shape[-1] == feature_size
    return features


def close(left, right):
    return left.shape == right.shape and torch.allclose(left, right, atol=1e-5)


@pytest.mark.parametrize("layer", [-1, 0])
@pytest.mark.parametrize("facet", PROJECTIONS)
@pytest.mark.parametrize(
    "name",
    [
        "test_vit",
        "vit_small_patch14_reg4_dinov2",
        "deit_tiny_distilled_patch16_224",
        "vit_small_patch16_rope_mixed_224",
    ],
)
def test_fused_maps_are_taken_apart(make_model, name, facet, layer):
    patch = {"vit_small_patch14_reg4_dinov2": {"patch_size": 16}}.get(name, {})
    model = make_model(name, depth=DEPTH, **patch)
    _, fused = caught(model, f"blocks.{layer % DEPTH}.attn.qkv")
    expected = fused.chunk(3, dim=-1)[PROJECTIONS.index(facet)]
    assert close(facet_of(model, facet, layer), expected)


@pytest.mark.parametrize("facet", PROJECTIONS)
@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3_qkvb", "vit_small_patch16_dinov3"])
def test_biases_kept_apart_are_added(make_model, name, facet):
    """Eva's fused map with separate biases is no module call, so the projection is made from its input."""
    model = make_model(name, depth=DEPTH)
    attention = model.blocks[-1].attn
    _, tokens = caught(model, "blocks.2.norm1")
    expected = tokens @ attention.qkv.weight.chunk(3)[PROJECTIONS.index(facet)].T
    bias = getattr(attention, f"{facet[0]}_bias", None)
    assert (bias is not None) == name.endswith("qkvb")
    assert close(facet_of(model, facet), expected if bias is None else expected + bias)


@pytest.mark.parametrize("facet", PROJECTIONS)
@pytest.mark.parametrize("attention", ["eva", "rope"])
def test_separate_maps_come_before_norm_and_rotation(attention, facet):
    torch.manual_seed(0)
    model = Eva(
        img_size=64, patch_size=16, embed_dim=48, depth=2, num_heads=3, num_classes=0, qkv_fused=False,
        qk_norm=True, attn_type=attention, use_rot_pos_emb=True, dynamic_img_size=True,
    ).eval()  # fmt: skip
    _, expected = caught(model, f"blocks.1.attn.{facet[0]}_proj")
    assert close(facet_of(model, facet), expected)


@pytest.mark.parametrize("facet", PROJECTIONS)
def test_parallel_scaling_blocks_hold_the_mlp_first(make_model, facet):
    model = make_model("vit_pwee_patch16_reg1_gap_256", depth=2)  # with a norm of queries and keys
    block = model.blocks[1]
    _, fused = caught(model, "blocks.1.in_proj")
    expected = fused.split(block.in_split, dim=-1)[1 + PROJECTIONS.index(facet)]
    assert close(facet_of(model, facet), expected)


def test_post_norm_blocks_project_their_input_as_it_is(make_model):
    model = make_model("vit_base_patch16_rpn_224", depth=2)
    _, fused = caught(model, "blocks.1.attn.qkv")
    assert close(facet_of(model, "value"), fused.chunk(3, dim=-1)[2])


def test_parallel_attentions_give_the_projections_of_all(make_model):
    model = make_model("vit_small_patch16_18x2_224", depth=2)
    parts = [caught(model, f"blocks.1.attns.{n}.attn.qkv")[1].chunk(3, dim=-1)[1] for n in range(2)]
    assert close(facet_of(model, "key"), torch.cat(parts, dim=-1))


@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch16_dinov3"])
def test_tokens_are_outputs_of_blocks_and_the_last_ones_are_normalised(make_model, name):
    expected = [caught(make_model(name, depth=DEPTH), f"blocks.{n}")[1] for n in range(DEPTH)]
    _, last = caught(make_model(name, depth=DEPTH), "norm")
    assert close(facet_of(make_model(name, depth=DEPTH), "token", -1), last)
    assert close(facet_of(make_model(name, depth=DEPTH), "token", 1), expected[1])
    assert close(facet_of(make_model(name, depth=DEPTH), "token", -DEPTH), expected[0])


def test_nothing_behind_the_facet_is_kept(make_model):
    model = make_model(depth=DEPTH)
    width = model.embed_dim
    keep_facet(model, "value", 1)
    assert len(model.blocks) == 2
    sizes = [parameter.numel() for parameter in model.blocks[1].parameters()]
    assert sum(sizes) == 2 * width + width * width + width  # norm, value map and its bias
    assert not list(model.norm.parameters())
    model = make_model(depth=DEPTH)
    keep_facet(model, "token", 0)
    assert len(model.blocks) == 1


@pytest.mark.parametrize("layer", [3, -4, 100])
def test_layers_out_of_range_are_refused(make_model, layer):
    with pytest.raises(ConfigurationError, match=rf"layer {layer} is out of range.*3 blocks, 0 to 2.*-3"):
        keep_facet(make_model(depth=DEPTH), "token", layer)


def test_unknown_blocks_are_refused():
    with pytest.raises(WeightsError, match="no value projection known in a ReLU"):
        AttentionProjection(torch.nn.ReLU(), "value")


def test_keys_for_training_are_those_of_the_encoder_and_reach_its_parameters(make_model):
    model = make_model(depth=1)
    block, tokens = model.blocks[0], torch.randn(1, 5, model.embed_dim)
    keys = key_vectors(block, tokens)
    assert close(keys, AttentionProjection(block, "key")(tokens))
    keys.sum().backward()
    trained = {id(parameter) for parameter in block.parameters() if parameter.grad is not None}
    assert trained == {id(parameter) for parameter in key_parameters(block)}
