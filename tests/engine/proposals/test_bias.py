import numpy as np
import pytest
import torch

from engine.errors import ImageError
from engine.proposals.bias import BiasScore, choose_biases, score_biases
from engine.proposals.config import MaskFilterConfig, MultiCutConfig
from engine.proposals.multicut import run_multicut

CONFIG = MultiCutConfig(starts=1, biases=(0.8, 0.8, 0.9))
NAMES = ("a", "b")


def noisy_objects() -> tuple[torch.Tensor, np.ndarray]:
    """Features (2, 20, 28, 8) of two images with the same four objects, and their masks (4, 20, 28)."""
    masks = np.zeros((4, 20, 28), bool)
    for mask, (row, column) in zip(masks, [(2, 3), (2, 17), (11, 3), (11, 17)], strict=True):
        mask[row : row + 7, column : column + 8] = True
    features = np.tile(np.eye(8)[0], (2, 20, 28, 1))
    for i, mask in enumerate(masks):
        # Objects share the background's component, so a bias of 0 would not separate anything.
        features[:, mask] = np.eye(8)[0] + 1.2 * np.eye(8)[i + 1]
    noise = 0.15 * np.random.default_rng(0).standard_normal(features.shape)
    return torch.as_tensor(features + noise).half(), masks


def test_the_chosen_bias_finds_the_objects() -> None:
    features, objects = noisy_objects()
    scores = list(score_biases(features, NAMES, CONFIG, MaskFilterConfig()))
    tried = [score.biases for score in scores]
    assert tried == sorted(set(tried))
    steps = np.diff(np.array(tried) - CONFIG.biases, axis=1)
    assert np.abs(steps).max() < 1e-9
    biases = choose_biases(scores)
    assert tried[0] < biases < tried[-1]
    found = run_multicut(features[0], MultiCutConfig(biases=biases)).masks
    ious = [max((mask & other).sum() / (mask | other).sum() for other in found) for mask in objects]
    assert min(ious) > 0.9
    assert sum(score.num_masks for score in scores[-1:]) > 4  # the highest bias shatters


def test_ties_go_to_the_lowest_bias() -> None:
    scores = [
        BiasScore(biases=(bias, 0.5), entropy=1, contrast=1, wholeness=1, num_masks=1, criterion=criterion)
        for bias, criterion in [(0.5, 0.3), (0.2, 0.7), (0.1, 0.7), (0.9, 0.1)]
    ]
    assert choose_biases(scores) == (0.1, 0.5)


def test_constant_images_give_a_single_score_of_zero() -> None:
    (score,) = score_biases(torch.eye(3)[:1].expand(2, 6, 9, 3), NAMES, CONFIG, MaskFilterConfig())
    assert score.biases == pytest.approx((1, 1, 1.1))
    assert (score.contrast, score.num_masks, score.criterion) == (0, 0, 0)


def test_non_finite_features_raise_with_the_image_name() -> None:
    features = torch.ones((2, 6, 9, 3))
    features[1, 0, 0] = torch.nan
    with pytest.raises(ImageError, match="'b'"):
        list(score_biases(features, NAMES, CONFIG, MaskFilterConfig()))
