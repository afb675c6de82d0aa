from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigurationError
from engine.proposals.config import ProMergeConfig
from engine.proposals.patches import touched_sides
from engine.proposals.promerge import promerge_masks, run_promerge
from engine.types import Reason

CONFIG = ProMergeConfig()


def rectangle_features(
    size: tuple[int, int], *objects: tuple[slice, slice], noise: float = 0.05, seed: int = 0
) -> np.ndarray:
    """Features (h, w, 8) of rectangles on a background, each along its own axis, with weak noise."""
    directions = np.eye(8)
    features = np.tile(directions[0], (*size, 1))
    for i, window in enumerate(objects):
        features[window] = directions[i + 1]
    noisy = features + noise * np.random.default_rng(seed).standard_normal(features.shape)
    return noisy.astype(np.float32)


def rectangles(size: tuple[int, int], *objects: tuple[slice, slice]) -> np.ndarray:
    masks = np.zeros((len(objects), *size), bool)
    for mask, window in zip(masks, objects, strict=True):
        mask[window] = True
    return masks


def test_objects_on_a_plain_background_are_found_largest_first() -> None:
    small, large = np.s_[2:8, 3:9], np.s_[12:22, 14:30]
    masks = promerge_masks(rectangle_features((24, 36), small, large), CONFIG)
    assert np.array_equal(masks, rectangles((24, 36), large, small))


def test_similar_objects_that_do_not_touch_are_not_merged() -> None:
    first, second = np.s_[4:12, 4:12], np.s_[4:12, 20:28]
    features = rectangle_features((20, 32), first, second)
    features[second] = features[first]
    assert np.array_equal(promerge_masks(features, CONFIG), rectangles((20, 32), first, second))


def test_features_may_have_any_length_and_dtype() -> None:
    features = rectangle_features((24, 24), np.s_[4:12, 8:16])
    expected = promerge_masks(features, CONFIG)
    scaled = features * np.random.default_rng(1).uniform(0.1, 10, (24, 24, 1))
    for dtype in (np.float16, np.float64):
        assert np.array_equal(promerge_masks(scaled.astype(dtype), CONFIG), expected)
    assert np.array_equal(promerge_masks(torch.as_tensor(features).double(), CONFIG), expected)
    before = features.copy()
    promerge_masks(features, CONFIG)
    assert np.array_equal(features, before)


def test_an_image_without_background_is_skipped_with_a_reason() -> None:
    quarters = [np.s_[:10, :10], np.s_[:10, 10:], np.s_[10:, :10], np.s_[10:, 10:]]
    features = rectangle_features((20, 20), *quarters, noise=0)
    result = run_promerge(features, ProMergeConfig(border_sides=3))
    assert (len(result.masks), result.skipped) == (0, Reason.NO_BACKGROUND)


def test_an_image_with_a_small_background_is_skipped_with_a_reason() -> None:
    # The only mask on two sides is one patch wide, along the left and the top.
    features = rectangle_features((40, 40), np.s_[1:, 1:], noise=0)
    features[1:, 1:] = 0
    result = run_promerge(features, CONFIG)
    assert result.background.sum() == 79
    assert result.skipped == Reason.SMALL_BACKGROUND


def test_an_image_without_objects_is_skipped_with_a_reason() -> None:
    result = run_promerge(rectangle_features((12, 20), noise=0.01), CONFIG)
    assert (result.masks.shape, result.skipped) == ((0, 12, 20), Reason.NO_FOREGROUND)
    assert result.background.all()


def test_a_single_patch_is_background() -> None:
    assert promerge_masks(np.ones((1, 1, 3), np.float32), CONFIG).shape == (0, 1, 1)


def test_each_filter_applies_its_own_tests() -> None:
    # The object is too similar to the background for the feature test, but does not overlap it.
    features = rectangle_features((24, 24), np.s_[8:16, 8:16], noise=0)
    features[8:16, 8:16] = 0.15 * np.eye(8)[0] + np.sqrt(1 - 0.15**2) * np.eye(8)[1]
    found = {
        name: len(promerge_masks(features, ProMergeConfig(filter=name)))
        for name in ("cascade", "ioa", "feature")
    }
    assert found == {"cascade": 0, "ioa": 1, "feature": 0}


def test_a_side_is_touched_if_more_than_half_is_covered() -> None:
    masks = np.zeros((2, 4, 6), bool)
    masks[0, 0, :3] = True
    masks[1, 0, :4] = True
    masks[1, :3, 0] = True
    assert touched_sides(masks, 0.5).tolist() == [0, 2]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 24), st.integers(2, 24), st.sampled_from([1, 2, 4]))
def test_masks_of_noise_are_valid_sorted_and_reproducible(
    seed: int, height: int, width: int, stride: int
) -> None:
    features = np.random.default_rng(seed).standard_normal((height, width, 5))
    masks = promerge_masks(features, ProMergeConfig(stride=stride))
    areas = masks.sum(axis=(1, 2))
    assert masks.shape[1:] == (height, width)
    assert (areas > 0).all()
    assert (np.diff(areas) <= 0).all()
    assert np.array_equal(masks, promerge_masks(features, ProMergeConfig(stride=stride)))


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), np.full((4, 4, 2), np.nan), np.full((4, 4, 2), np.inf)])
def test_invalid_features_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="features must"):
        promerge_masks(bad, CONFIG)


@pytest.mark.parametrize("wrong", [{"stride": 0}, {"border_sides": 5}, {"vote_fraction": 1.5}, {"tau_b": -2}])
def test_settings_out_of_range_name_the_field(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        ProMergeConfig(**wrong)


def test_reference_cases_are_reproduced_exactly(development_data: Callable[[str], Path]) -> None:
    skips = {
        "": None,
        "no background candidate": Reason.NO_BACKGROUND,
        "background insufficient size": Reason.SMALL_BACKGROUND,
    }
    cases = sorted(development_data("reference/promerge").glob("*.npz"))
    assert cases
    for path in cases:
        case = np.load(path)
        expected = np.unpackbits(case["masks"], axis=-1, count=60).astype(bool)
        result = run_promerge(case["features"], CONFIG)
        assert np.array_equal(result.masks, expected), path.stem
        assert result.skipped == skips[str(case["skipped"])], path.stem


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_gives_the_same_masks() -> None:
    features = rectangle_features((60, 60), np.s_[2:8, 3:9], np.s_[12:22, 14:30])
    on_gpu = promerge_masks(torch.as_tensor(features, device="cuda"), CONFIG)
    assert np.array_equal(on_gpu, promerge_masks(features, CONFIG))
