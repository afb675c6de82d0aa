"""The public interface of the CRF, for every backend."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.errors import ConfigurationError
from engine.refine import CrfConfig, refine_masks

BACKENDS = ("numba", "torch", "pydensecrf")


def two_halves(height: int, width: int) -> NDArray[np.uint8]:
    """An image with a dark left half and a bright right half."""
    image = np.full((height, width, 3), 60, np.uint8)
    image[:, width // 2 :] = 200
    return image


@pytest.fixture(params=BACKENDS)
def config(request: pytest.FixtureRequest) -> CrfConfig:
    if request.param == "pydensecrf":
        pytest.importorskip("pydensecrf")
    return CrfConfig(backend=request.param)


def test_a_mask_snaps_to_the_image_edge(config: CrfConfig) -> None:
    image = two_halves(32, 48)
    coarse = np.zeros((1, 32, 48), bool)
    coarse[:, 4:28, 20:48] = True
    coarse[:, 10:14, 30:34] = False
    refined = refine_masks(image, coarse, config)
    assert refined.shape == coarse.shape
    assert refined.dtype == np.bool_
    assert refined[0, :, 24:].all()
    assert not refined[0, :, :24].any()


def test_complementary_masks_stay_complementary(config: CrfConfig) -> None:
    image = np.random.default_rng(3).integers(0, 256, (20, 33, 3), np.uint8)
    mask = np.zeros((20, 33), bool)
    mask[3:11, 5:22] = True
    inside, outside = refine_masks(image, np.stack([mask, ~mask]), config)
    assert np.array_equal(inside, ~outside)


def test_masks_of_an_image_do_not_influence_each_other(config: CrfConfig) -> None:
    rng = np.random.default_rng(5)
    image = rng.integers(90, 130, (24, 17, 3), np.uint8)
    masks = np.kron(rng.random((11, 6, 5)) < 0.4, np.ones((4, 4), bool))[:, :24, :17]
    together = refine_masks(image, masks, config)
    alone = np.concatenate([refine_masks(image, masks[i : i + 1], config) for i in range(len(masks))])
    assert np.array_equal(together, alone)
    assert not np.array_equal(together, masks)


def test_empty_and_full_masks_do_not_change(config: CrfConfig) -> None:
    masks = np.stack([np.zeros((12, 19), bool), np.ones((12, 19), bool)])
    assert np.array_equal(refine_masks(two_halves(12, 19), masks, config), masks)


def test_masks_do_not_change_without_pairwise_weights(config: CrfConfig) -> None:
    unary_only = CrfConfig(backend=config.backend, gaussian_weight=0, bilateral_weight=0, steps=2)
    rng = np.random.default_rng(1)
    masks = rng.random((3, 9, 14)) < 0.5
    image = rng.integers(0, 256, (9, 14, 3), np.uint8)
    assert np.array_equal(refine_masks(image, masks, unary_only), masks)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 3)])
def test_tiny_images(config: CrfConfig, shape: tuple[int, int]) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    masks = np.stack([np.zeros(shape, bool), np.ones(shape, bool)])
    assert np.array_equal(refine_masks(image, masks, config), masks)


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0)])
def test_empty_input(config: CrfConfig, shape: tuple[int, int, int]) -> None:
    masks = np.zeros(shape, bool)
    refined = refine_masks(np.zeros((*shape[1:], 3), np.uint8), masks, config)
    assert refined.shape == shape
    assert refined.dtype == np.bool_


def test_inputs_may_be_read_only_views_and_are_not_modified(config: CrfConfig) -> None:
    image = two_halves(20, 32)[:, ::-1]
    masks = np.zeros((32, 20, 1), bool).transpose(2, 1, 0)
    masks[:, 5:15, 3:20] = True
    before = masks.copy()
    image.flags.writeable = masks.flags.writeable = False
    refined = refine_masks(image, masks, config)
    assert np.array_equal(masks, before)
    contiguous_image, contiguous_masks = np.ascontiguousarray(image), np.ascontiguousarray(masks)
    contiguous_image.flags.writeable = contiguous_masks.flags.writeable = False
    assert np.array_equal(refine_masks(contiguous_image, contiguous_masks, config), refined)


@pytest.mark.parametrize(
    ("image", "masks"),
    [
        (np.zeros((4, 5), np.uint8), np.zeros((1, 4, 5), bool)),
        (np.zeros((4, 5, 3), np.float32), np.zeros((1, 4, 5), bool)),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), bool)),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((1, 5, 4), bool)),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((1, 4, 5), np.uint8)),
    ],
)
def test_wrong_shapes_and_dtypes_are_refused(image: np.ndarray, masks: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be"):
        refine_masks(image, masks)


def test_zero_threads_are_refused() -> None:
    with pytest.raises(ValueError, match="num_threads"):
        refine_masks(np.zeros((4, 5, 3), np.uint8), np.zeros((1, 4, 5), bool), num_threads=0)


@pytest.mark.parametrize(
    "setting",
    [
        {"steps": 0},
        {"gaussian_sigma_xy": 0.0},
        {"bilateral_sigma_xy": -1.0},
        {"bilateral_sigma_rgb": float("nan")},
        {"gaussian_weight": -1.0},
        {"bilateral_weight": float("inf")},
        {"backend": "exact"},
    ],
)
def test_settings_out_of_range_name_the_field(setting: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(setting))):
        CrfConfig(**setting)
