import numpy as np
import pytest
from skimage.color import lab2rgb

from engine.superpixels.boundary import BoundaryConfig, boundary_tensor, placing_tensor, to_lab
from engine.superpixels.filters import add_doubled, add_gradients, largest_strength, smooth

ALL_OFF = {
    "colour_weights": (0.0, 0.0, 0.0),
    "lightness_weights": (0.0, 0.0),
    "chroma_weights": (0.0, 0.0),
    "texture_weights": (0.0, 0.0, 0.0),
}
SIZE, COLUMN = (64, 112), 56


def stripes(along_x):
    """Lightness 45 and 55 in stripes 4 pixels wide."""
    position = np.mgrid[: SIZE[0], : SIZE[1]][1 if along_x else 0]
    return np.where(position // 4 % 2, 45.0, 55.0)


def image_with_boundary(cue):
    """sRGB image (H, W, 3) in which only `cue` changes at COLUMN."""
    lab = np.full((*SIZE, 3), (50.0, 0.0, 0.0))
    if cue == "chroma":
        lab[:, COLUMN:, 1] = 30
    elif cue == "texture":
        lab[..., 0] = np.where(np.arange(SIZE[1]) < COLUMN, stripes(False), stripes(True))
    else:
        lab[:, COLUMN:, 0] = 75
    return lab2rgb(lab).astype(np.float32)


@pytest.mark.parametrize("cue", ["colour", "lightness", "chroma", "texture"])
def test_each_cue_alone_detects_its_boundary_and_direction(cue):
    weights = {**ALL_OFF, f"{cue}_weights": getattr(BoundaryConfig(), f"{cue}_weights")}
    tensor = boundary_tensor(to_lab(image_with_boundary(cue)), BoundaryConfig(**weights))
    across = np.sqrt(tensor[12:-12, :, 0]).mean(axis=0)
    # Stripes begin and end within their period of 8 pixels.
    assert abs(across.argmax() - (COLUMN - 0.5)) <= (4 if cue == "texture" else 1.5)
    assert across[COLUMN] > 4 * across[24]
    assert across[COLUMN] > 4 * np.sqrt(tensor[12:-12, COLUMN, 2]).mean()


@pytest.mark.parametrize("cue", ["chroma", "texture"])
def test_a_cue_does_not_respond_to_the_boundary_of_another(cue):
    other = {"chroma": "lightness", "texture": "chroma"}[cue]
    weights = {**ALL_OFF, f"{cue}_weights": getattr(BoundaryConfig(), f"{cue}_weights")}
    tensor = boundary_tensor(to_lab(image_with_boundary(other)), BoundaryConfig(**weights))
    responding = boundary_tensor(to_lab(image_with_boundary(cue)), BoundaryConfig(**weights))
    assert tensor[..., 0].max() < 0.05 * responding[..., 0].max()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (5, 8)])
def test_a_constant_image_has_no_boundaries(shape):
    lab_chw = to_lab(np.full((*shape, 3), 0.4, np.float32))
    tensor = boundary_tensor(lab_chw, BoundaryConfig())
    assert tensor.shape == (*shape, 3)
    assert np.abs(tensor).max() < 1e-8
    assert np.abs(placing_tensor(tensor, lab_chw, BoundaryConfig())).max() < 1e-8


def test_placing_tensor_adds_only_the_finest_gradient():
    lab_chw = to_lab(image_with_boundary("colour"))
    all_off = BoundaryConfig(**ALL_OFF, placing_weight=2.0)
    expected = boundary_tensor(lab_chw, BoundaryConfig(**{**ALL_OFF, "colour_weights": (2.0, 0.0, 0.0)}))
    placed = placing_tensor(boundary_tensor(lab_chw, all_off), lab_chw, all_off)
    np.testing.assert_allclose(placed, expected, atol=1e-7)


def test_strength_of_a_slanted_gradient():
    plane = (0.3 * np.arange(7)[None] + 0.4 * np.arange(5)[:, None]).astype(np.float32)
    tensor = np.zeros((5, 7, 3), np.float32)
    add_gradients(plane, 4.0, tensor)
    # |(0.3, 0.4)| = 0.5, times the root of the weight
    np.testing.assert_allclose(largest_strength(tensor)[1:-1, 1:-1], 1.0, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (7, 2), (30, 40)])
@pytest.mark.parametrize("sigma_px", [0.5, 3.0])
def test_smoothing_preserves_constants_and_means(shape, sigma_px):
    np.testing.assert_allclose(smooth(np.full(shape, 7.0, np.float32), sigma_px), 7.0, rtol=1e-5)
    noise = np.random.default_rng(0).random(shape).astype(np.float32)
    smoothed = smooth(noise, sigma_px)
    assert smoothed.min() >= noise.min() - 1e-6
    assert smoothed.max() <= noise.max() + 1e-6
    if min(shape) > 9:
        np.testing.assert_allclose(smoothed.mean(), noise.mean(), rtol=1e-3)


def test_upsampling_interpolates_between_pixel_centres():
    coarse = np.zeros((1, 2, 3), np.float32)
    coarse[0, 1] = 4
    tensor = np.ones((2, 3, 3), np.float32)
    add_doubled(coarse, tensor)
    # Fine columns 0, 1, 2 lie at -0.25, 0.25 and 0.75 coarse pixels.
    assert tensor[..., 0].tolist() == [[1, 2, 4], [1, 2, 4]]
