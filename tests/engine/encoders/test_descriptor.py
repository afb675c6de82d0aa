import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import color

from engine.encoders import EncoderConfig, load_encoder
from engine.encoders.descriptor import FEATURE_SIZE, describe_patches, srgb_to_lab


def test_lab_agrees_with_scikit_image():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    expected = color.rgb2lab(image) / 100
    assert np.abs(srgb_to_lab(image) - expected).max() < 2e-3


def test_lab_of_black_white_and_red():
    image = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0]]], np.uint8)
    expected = [[0, 0, 0], [1, 0, 0], [0.5324, 0.8009, 0.6720]]
    assert np.allclose(srgb_to_lab(image)[0], expected, atol=2e-3)


def test_surfaces_of_other_colour_differ_and_of_the_same_agree():
    image = np.full((64, 96, 3), (90, 160, 90), np.uint8)
    image[16:48, 32:64] = (170, 60, 50)
    features = describe_patches(image)
    inside, far_corner, near = features[3, 5], features[7, 11], features[0, 0]
    assert inside @ features[4, 6] > 0.9
    assert near @ far_corner > 0.9
    assert inside @ far_corner < 0


def test_surfaces_of_other_texture_differ():
    image = np.full((64, 128, 3), 128, np.uint8)
    image[::4, :64] = image[1::4, :64] = 100
    image[:, 64::4] = image[:, 65::4] = 100
    features = describe_patches(image)
    assert features[4, 2] @ features[2, 4] > 0.8
    assert features[4, 2] @ features[4, 13] < 0.2


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (3, 200, 77)])
@pytest.mark.parametrize("size", [(8, 8), (64, 40)])
def test_image_of_one_colour_is_one_surface(colour, size):
    features = describe_patches(np.full((*size, 3), colour, np.uint8)).reshape(-1, FEATURE_SIZE)
    assert np.isfinite(features).all()
    assert np.allclose(features @ features.T, 1, atol=1e-5)


@given(
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    levels=st.sampled_from([1, 2, 256]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_any_image_gives_finite_features_of_length_one_or_zero(height, width, levels, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, levels, (8 * height, 8 * width, 3)).astype(np.uint8)
    lengths = np.linalg.norm(describe_patches(image), axis=2)
    assert lengths.shape == (height, width)
    assert ((np.abs(lengths - 1) < 1e-4) | (lengths == 0)).all()


def test_mirrored_image_gives_mirrored_affinities():
    image = np.random.default_rng(1).integers(0, 256, (64, 128, 3), np.uint8)
    image[:, 64:] //= 3
    plain, mirrored = describe_patches(image), describe_patches(image[::-1])[::-1]
    affinity = np.einsum("hwc,hwc->hw", plain, np.roll(plain, 5, axis=1))
    affinity_mirrored = np.einsum("hwc,hwc->hw", mirrored, np.roll(mirrored, 5, axis=1))
    assert affinity.std() > 0.2
    assert np.allclose(affinity, affinity_mirrored, atol=1e-3)


def test_neighbours_in_a_batch_do_not_matter():
    encoder = load_encoder(EncoderConfig(name="descriptor", image_size=64), "cpu")
    images = list(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8))
    together = encoder.encode(images)
    assert torch.equal(together[1:2], encoder.encode([images[1]]))
    assert torch.equal(together.flip(0), encoder.encode(images[::-1]))
