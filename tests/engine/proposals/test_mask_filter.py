import numpy as np
import pytest

from engine.proposals.config import MaskFilterConfig
from engine.proposals.mask_filter import score_masks

OUTSIDE, INSIDE = MaskFilterConfig(), MaskFilterConfig(edge="inside")


def test_scores_worked_by_hand() -> None:
    # A 3 x 3 mask with features along x in the corner of a 4 x 5 grid with features along y.
    features = np.zeros((4, 5, 2))
    features[..., 1] = 1
    mask = np.zeros((1, 4, 5), bool)
    mask[0, :3, :3] = True
    features[:3, :3] = [1, 0]
    # The mean feature is x: A = 1 inside the mask, the inner rim included, and 0 on the outer ring.
    assert score_masks(features, mask, OUTSIDE).tolist() == pytest.approx([1.0])
    assert score_masks(features, mask, INSIDE).tolist() == pytest.approx([0.0])


def test_inner_patches_exclude_the_rim() -> None:
    features = np.zeros((5, 7, 2))
    features[..., 1] = 1
    mask = np.zeros((1, 5, 7), bool)
    mask[0, 1:4, 1:6] = True
    features[2, 2:5] = [1, 0]  # the inner patches, 3 of 15
    mean = np.array([3.0, 12.0]) / np.hypot(3, 12)
    assert score_masks(features, mask, OUTSIDE).tolist() == pytest.approx([mean[0] - mean[1]])
    assert score_masks(features, mask, INSIDE).tolist() == pytest.approx([mean[0] - mean[1]])


def test_masks_without_inner_or_edge_patches() -> None:
    features = np.ones((2, 3, 4))
    single, whole, empty = np.zeros((3, 2, 3), bool)
    single[1, 1] = True
    whole[:] = True
    scores = score_masks(features, np.stack([single, whole, empty]), OUTSIDE)
    assert scores.tolist() == pytest.approx([0.0, 1.0, 0.0])
    assert score_masks(features, np.zeros((0, 2, 3), bool), OUTSIDE).shape == (0,)


def test_a_mask_that_fits_its_object_scores_higher_than_a_shifted_one() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((12, 16, 3)) * 0.2 + [1, 0, 0]
    features[3:9, 4:10] += [-1, 1, 0]
    good, shifted = np.zeros((2, 12, 16), bool)
    good[3:9, 4:10] = True
    shifted[3:9, 7:13] = True
    scores = score_masks(features, np.stack([good, shifted]), OUTSIDE)
    assert scores[0] > scores[1] + 0.3
