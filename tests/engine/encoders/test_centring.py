from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.encoders import (
    EncoderConfig,
    FeatureStatistics,
    load_encoder,
    resolve_centring,
    summarise_features,
)
from engine.encoders.centring import Normaliser
from engine.errors import ConfigurationError, StoreError

CPU = torch.device("cpu")
RANDOM_VIT = EncoderConfig(name="test_vit", weights="random", image_size=64, batch_size=2)
IMAGES = list(np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), np.uint8))
SHARED = FeatureStatistics(mean=(10.0, 0.0), resultant_length=0.9, num_images=2)


def measured(*features):
    return summarise_features((torch.tensor([list(image)]) for image in features), "fixed")


def statistics_of(config, images):
    return summarise_features(load_encoder(config, "cpu").encode_raw(images), config.name)


def normalised(config, statistics, features):
    features = torch.tensor(features, dtype=torch.float32)
    return Normaliser(config, statistics, features.shape[-1], CPU)(features)


def test_statistics_of_two_patches_by_hand():
    statistics = measured([(3.0, 4.0), (3.0, -4.0)])
    assert (statistics.mean, statistics.num_images) == ((3.0, 0.0), 1)
    assert statistics.resultant_length == pytest.approx(0.6)
    assert measured([(2.0, 0.0)], [(0.0, 0.0)]) == FeatureStatistics(
        mean=(1.0, 0.0), resultant_length=0.5, num_images=2
    )


def test_images_with_features_that_are_not_finite_do_not_count():
    nan = float("nan")
    assert measured([(2.0, 0.0)], [(nan, 0.0)]) == measured([(2.0, 0.0)])
    for features in ([], [[(nan, 1.0)]]):
        with pytest.raises(ConfigurationError, match="no image with finite features of fixed"):
            measured(*features)


def test_statistics_do_not_depend_on_the_batch_size():
    images = IMAGES * 4
    statistics = statistics_of(RANDOM_VIT, images)
    single = statistics_of(replace(RANDOM_VIT, batch_size=1), images)
    assert np.allclose(statistics.mean, single.mean, atol=1e-5)
    assert statistics.num_images == single.num_images == 12
    assert statistics == statistics_of(RANDOM_VIT, images)


def test_statistics_survive_as_json():
    statistics = statistics_of(RANDOM_VIT, IMAGES)
    again = FeatureStatistics.from_json(statistics.to_json())
    assert again == statistics
    assert again.digest == statistics.digest != SHARED.digest
    assert np.float32(statistics.mean).tolist() == list(statistics.mean)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"mean": []}', SHARED.to_json().replace(b"10.0", b"NaN")])
def test_damaged_statistics_are_refused(data):
    with pytest.raises(StoreError, match="statistics are damaged"):
        FeatureStatistics.from_json(data)


def test_auto_centres_what_shares_a_large_vector():
    auto = EncoderConfig()
    assert resolve_centring(auto, SHARED).centring == "corpus"
    assert resolve_centring(auto, replace(SHARED, resultant_length=0.3)).centring == "none"
    for centring in ("none", "image", "corpus"):
        given = EncoderConfig(centring=centring)
        assert resolve_centring(given, SHARED) == given


def test_the_mean_of_the_corpus_is_subtracted_before_normalisation():
    features = [[[[10.0, 2.0], [7.0, 4.0], [10.0, 0.0]]]]
    centred = normalised(EncoderConfig(centring="corpus"), SHARED, features)
    assert centred.dtype == torch.float16
    expected = torch.tensor([[[[0.0, 1.0], [-0.6, 0.8], [0.0, 0.0]]]])
    assert torch.allclose(centred.float(), expected, atol=1e-3)
    assert torch.equal(centred, normalised(EncoderConfig(centring="auto"), SHARED, features))
    raw = normalised(EncoderConfig(centring="none"), SHARED, features)
    assert torch.equal(raw, normalised(EncoderConfig(centring="auto"), None, features))
    assert raw[0, 0, 2].tolist() == [1.0, 0.0]


def test_the_mean_of_each_image_is_subtracted():
    features = [[[[4.0, 1.0], [4.0, 5.0]]], [[[0.0, 0.0], [6.0, 0.0]]]]
    centred = normalised(EncoderConfig(centring="image"), None, features)
    assert centred.tolist() == [[[[0.0, -1.0], [0.0, 1.0]]], [[[-1.0, 0.0], [1.0, 0.0]]]]
    assert normalised(EncoderConfig(centring="image"), None, [[[[3.0, 4.0]]]]).tolist() == [[[[0.0, 0.0]]]]


@pytest.mark.parametrize("config", [RANDOM_VIT, EncoderConfig(name="descriptor", image_size=64)])
def test_encoders_centre_as_configured(config):
    statistics = statistics_of(replace(config, centring="none"), IMAGES)
    corpus = load_encoder(replace(config, centring="corpus"), "cpu", statistics=statistics).encode(IMAGES)
    raw = load_encoder(replace(config, centring="none"), "cpu").encode_raw(IMAGES)
    expected = torch.nn.functional.normalize(raw - torch.tensor(statistics.mean), dim=-1)
    assert torch.allclose(corpus.float(), expected, atol=2e-3)
    encoder = load_encoder(replace(config, centring="image"), "cpu")
    assert torch.equal(encoder.encode(IMAGES)[1:2], encoder.encode(IMAGES[1:2]))
    assert not torch.allclose(encoder.encode(IMAGES).float(), expected, atol=2e-3)


def test_statistics_must_be_there_and_fit():
    with pytest.raises(ConfigurationError, match="centring corpus needs the mean feature"):
        load_encoder(replace(RANDOM_VIT, centring="corpus"), "cpu")
    with pytest.raises(ConfigurationError, match="has 2 channels, features of 'test_vit' have 64"):
        load_encoder(replace(RANDOM_VIT, centring="corpus"), "cpu", statistics=SHARED)
