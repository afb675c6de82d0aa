import numpy as np
import pytest
import torch

from engine.encoders import EncoderConfig, finite_rows, load_encoder
from engine.encoders.encoder import patch_grid
from engine.errors import ConfigurationError

SHARED_CONTRACT = [
    EncoderConfig(name="descriptor", image_size=100),
    EncoderConfig(image_size=100, batch_size=2),
    EncoderConfig(name="test_vit", weights="random", image_size=70, batch_size=2),
]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"name": ""}, "no name"),
        ({"weights": ""}, "weights are empty"),
        ({"image_size": 0}, "image_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"precision": "float64"}, "precision must be auto, float32, bfloat16 or float16"),
        ({"facet": "keys"}, "facet must be key, query, value or token"),
        ({"centring": "mean"}, "centring must be auto, none, image or corpus"),
        ({"seed": -1}, "seed"),
    ],
)
def test_configuration_is_checked(fields, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        EncoderConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"weights": "dino.pth"}, "'embedded' takes no weights"),
        ({"name": "descriptor", "weights": "random"}, "'descriptor' takes no weights"),
        ({"name": "descriptor", "precision": "bfloat16"}, "float32 only"),
        ({"name": "descriptor", "facet": "value"}, "no facets and no layers"),
        ({"name": "descriptor", "layer": 0}, "no facets and no layers"),
    ],
)
def test_encoders_that_need_no_weights_take_none(fields, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        load_encoder(EncoderConfig(**fields), "cpu")


def test_descriptions_of_raw_keys_have_no_newer_fields():
    raw = EncoderConfig(centring="none").describe()
    assert EncoderConfig().describe() == raw  # auto means none for this encoder
    assert EncoderConfig(name="dinov2").describe()["centring"] == "auto"
    assert raw == {
        "name": "embedded", "weights": "hub", "image_size": 480, "batch_size": 8, "precision": "auto",
        "seed": 0,
    }  # fmt: skip
    other = EncoderConfig(facet="token", layer=9, centring="corpus").describe()
    assert other == raw | {"facet": "token", "layer": 9, "centring": "corpus"}
    assert EncoderConfig(layer=11).describe()["layer"] == 11


def test_grid_is_rounded_down_to_whole_patches():
    assert patch_grid(480, (8, 8), "a") == (60, 60)
    assert patch_grid(480, (14, 14), "a") == (34, 34)
    assert patch_grid(33, (16, 8), "a") == (2, 4)
    with pytest.raises(ConfigurationError, match="smaller than one patch of a"):
        patch_grid(13, (14, 14), "a")


def test_finite_rows_names_the_images_that_failed():
    features = torch.zeros((4, 2, 2, 3), dtype=torch.float16)
    features[1, 0, 1, 2] = torch.nan
    features[3, 1, 1, 0] = -torch.inf
    assert finite_rows(features).tolist() == [True, False, True, False]
    assert finite_rows(torch.zeros((0, 2, 2, 3))).tolist() == []


def test_devices_and_threads_are_checked():
    with pytest.raises(ConfigurationError, match="unknown device"):
        load_encoder(EncoderConfig(), "quantum")
    with pytest.raises(ConfigurationError, match="no device"):
        load_encoder(EncoderConfig(), f"cuda:{torch.cuda.device_count()}")
    with pytest.raises(ConfigurationError, match="num_threads"):
        load_encoder(EncoderConfig(), "cpu", num_threads=0)


def test_number_of_threads_is_set():
    before = torch.get_num_threads()
    try:
        load_encoder(EncoderConfig(), "cpu", num_threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("config", SHARED_CONTRACT, ids=lambda config: config.name)
def test_every_encoder_keeps_the_contract(config):
    encoder = load_encoder(config, "cpu")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*encoder.image_size, 3), np.uint8)
    height, width = encoder.grid
    features = encoder.encode([image, image // 2, 255 - image])
    assert features.shape == (3, height, width, encoder.feature_size)
    assert features.dtype == torch.float16
    assert not features.is_inference()
    assert torch.allclose(features.float().norm(dim=-1), torch.ones(3, height, width), atol=2e-3)
    assert encoder.encode([]).shape == (0, height, width, encoder.feature_size)
    assert encoder.name == config.name
    assert len(encoder.weights_digest) == 64


@pytest.mark.parametrize("config", SHARED_CONTRACT, ids=lambda config: config.name)
def test_images_of_wrong_type_or_shape_are_refused(config):
    encoder = load_encoder(config, "cpu")
    with pytest.raises(ValueError, match=r"image 0 must be uint8 \(H, W, 3\), got float32"):
        encoder.encode([np.zeros((16, 16, 3), np.float32)])
    with pytest.raises(ValueError, match=r"image 1 must be uint8 \(H, W, 3\)"):
        encoder.encode([np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)])
    with pytest.raises(ValueError, match="one size"):
        encoder.encode([np.zeros((16, 16, 3), np.uint8), np.zeros((16, 32, 3), np.uint8)])
    with pytest.raises(ValueError, match="no multiple of the patch size"):
        encoder.encode([np.zeros((16, 17, 3), np.uint8)])
    with pytest.raises(ValueError, match="no multiple of the patch size"):
        encoder.encode([np.zeros((0, 16, 3), np.uint8)])


@pytest.mark.parametrize("config", SHARED_CONTRACT, ids=lambda config: config.name)
def test_inputs_may_be_read_only_views_and_stay_as_they_are(config):
    image = np.arange(32 * 48 * 3, dtype=np.uint64).astype(np.uint8).reshape(32, 48, 3)
    image.setflags(write=False)
    before = image.copy()
    load_encoder(config, "cpu").encode([image])
    assert (image == before).all()
