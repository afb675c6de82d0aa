import numpy as np
import pytest
import torch

from engine.encoders import EncoderConfig, load_encoder
from engine.encoders.backbone import load_backbone
from engine.encoders.facets import keep_facet
from engine.encoders.layout import IMAGENET_MEAN, IMAGENET_STD
from engine.errors import ConfigurationError

TINY = "test_vit"
IMAGES = list(np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), np.uint8))


def config_of(name=TINY, **fields):
    return EncoderConfig(
        **{
            "name": name,
            "weights": "random",
            "image_size": 64,
            "batch_size": 2,
            "precision": "float32",
            **fields,
        }
    )


def normalised(image):
    pixels = (image.astype(np.float64) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]


def keys_of(model, image):
    """Keys of the last attention by a plain forward pass through the whole model."""
    outputs = []
    handle = model.blocks[-1].attn.qkv.register_forward_hook(lambda *call: outputs.append(call[-1]))
    with torch.no_grad():
        model(normalised(image))
    handle.remove()
    keys = outputs[0].chunk(3, dim=-1)[1][0, model.num_prefix_tokens :]
    grid = [side // patch for side, patch in zip(image.shape, model.patch_embed.patch_size, strict=False)]
    return torch.nn.functional.normalize(keys, dim=-1).reshape(*grid, -1)


@pytest.mark.parametrize("name", [TINY, "deit_tiny_distilled_patch16_224"])
def test_features_are_the_keys_of_the_last_attention(make_model, save_weights, name):
    model = make_model(name)
    image = np.random.default_rng(1).integers(0, 256, (32, 80, 3), np.uint8)
    path = save_weights(model.state_dict(), "weights.safetensors")
    encoder = load_encoder(config_of(name, weights=path), "cpu")
    (features,) = encoder.encode([image])
    expected = keys_of(model, image)
    assert features.shape == (2, 5, encoder.feature_size) == expected.shape
    assert expected.flatten(0, 1).std(dim=0).max() > 0.01  # keys of patches differ, so order matters
    assert torch.allclose(features.float(), expected, atol=2e-3)


def test_facet_and_layer_are_those_of_the_configuration():
    values = load_encoder(config_of(facet="value", layer=2), "cpu").encode(IMAGES)
    model = load_backbone(config_of()).model
    keep_facet(model, "value", 2)
    with torch.no_grad():
        expected = model.forward_features(normalised(IMAGES[0]))[0, model.num_prefix_tokens :]
    expected = torch.nn.functional.normalize(expected, dim=-1).reshape(4, 6, -1)
    assert torch.allclose(values[0].float(), expected, atol=2e-3)
    with pytest.raises(ConfigurationError, match="layer 6 is out of range"):
        load_encoder(config_of(layer=6), "cpu")


def test_raw_features_are_not_normalised():
    encoder = load_encoder(config_of(), "cpu")
    raw = encoder.encode_raw(IMAGES)
    assert raw.dtype == torch.float32
    assert not raw.is_inference()
    assert raw.norm(dim=-1).std() > 0.1
    assert torch.equal(torch.nn.functional.normalize(raw, dim=-1).half(), encoder.encode(IMAGES))
    assert encoder.encode_raw([]).shape == (0, 4, 4, 64)


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_cpu():
    on_cpu = load_encoder(config_of(), "cpu").encode(IMAGES)
    on_gpu = load_encoder(config_of(), "cuda").encode(IMAGES)
    assert on_gpu.is_cuda
    assert (on_cpu.float() * on_gpu.cpu().float()).sum(dim=-1).min() > 0.9999
