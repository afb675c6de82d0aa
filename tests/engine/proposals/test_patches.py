"""The features that both proposal methods accept."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from engine.proposals.config import MultiCutConfig, ProMergeConfig
from engine.proposals.multicut import run_multicut
from engine.proposals.patches import features_tensor
from engine.proposals.promerge import run_promerge

METHODS = [
    lambda features: run_promerge(features, ProMergeConfig(stride=2)).masks,
    lambda features: run_multicut(features, MultiCutConfig()).masks,
]


@pytest.mark.parametrize("propose", METHODS)
def test_features_may_have_any_memory_layout(propose: Callable[..., np.ndarray]) -> None:
    features = np.tile(np.float32([1, 0]), (12, 20, 1))
    features[3:8, 5:12] = (0, 1)
    expected = propose(features)
    assert np.array_equal(expected, (features[..., 1] == 1)[None])
    reversed_twice = np.ascontiguousarray(features[::-1, :, ::-1])[::-1, :, ::-1]
    read_only = features.copy()
    read_only.flags.writeable = False
    others = [reversed_twice, read_only, features.astype(">f8"), features.astype(np.longdouble)]
    for other in (*others, torch.tensor(features, requires_grad=True)):
        assert np.array_equal(propose(other), expected)


@pytest.mark.parametrize("propose", METHODS)
@pytest.mark.parametrize("shape", [(4, 5), (0, 5, 3), (4, 0, 3), (4, 5, 0), (1, 4, 5, 3)])
def test_features_of_another_shape_are_refused(
    propose: Callable[..., np.ndarray], shape: tuple[int, ...]
) -> None:
    for features in (np.ones(shape, np.float32), torch.ones(shape)):
        with pytest.raises(ValueError, match=r"features must have the shape \(height, width, channels\)"):
            propose(features)


def test_the_tensor_shares_memory_if_possible() -> None:
    features = np.zeros((2, 3, 4), np.float16)
    features_tensor(features)[1, 2, 3] = 1
    assert features[1, 2, 3] == 1
