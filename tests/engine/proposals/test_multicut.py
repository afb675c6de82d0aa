import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigurationError, ImageError
from engine.proposals.config import MultiCutConfig
from engine.proposals.lower_bound import multicut_lower_bound
from engine.proposals.multicut import part_masks, run_multicut, solve_multicut
from engine.proposals.partitions import multicut_objective
from engine.types import Reason

CONFIG = MultiCutConfig()


def all_partitions(num_nodes: int) -> np.ndarray:
    """Labels of every partition, (Bell number, num_nodes)."""
    labels = np.zeros((1, 1), np.int64)
    for _ in range(num_nodes - 1):
        rows = [np.append(row, label) for row in labels for label in range(row.max() + 2)]
        labels = np.array(rows)
    return labels


PARTITIONS = {num_nodes: all_partitions(num_nodes) for num_nodes in range(1, 10)}


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, np.ndarray, np.ndarray]:
    """Any graph of 1 to 9 nodes: with parallel edges, loops, several components or no edge at all."""
    num_nodes = draw(st.integers(1, 9))
    num_edges = draw(st.integers(0, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    uv = rng.integers(0, num_nodes, (num_edges, 2))
    cost = rng.normal(draw(st.sampled_from([-2.0, 0.0, 0.5, 2.0])), 1, num_edges)
    return num_nodes, uv, cost if draw(st.booleans()) else cost.round()


@settings(max_examples=80, deadline=None)
@given(graph=graphs(), starts=st.sampled_from([1, 3]), num_rounds=st.sampled_from([1, 4]))
def test_the_bound_is_below_the_optimum_and_the_solution_above(
    graph: tuple[int, np.ndarray, np.ndarray], starts: int, num_rounds: int
) -> None:
    num_nodes, uv, cost = graph
    partitions = PARTITIONS[num_nodes]
    is_cut = partitions[:, uv[:, 0]] != partitions[:, uv[:, 1]]
    optimum = (is_cut * cost).sum(axis=1).min()
    labels = solve_multicut(num_nodes, uv, cost, starts)
    objective = multicut_objective(labels, uv, cost)
    bound = multicut_lower_bound(num_nodes, uv, cost, num_rounds)
    assert bound <= optimum + 1e-9
    assert optimum - 1e-9 <= objective <= 1e-9
    assert_parts_are_connected(labels, uv)


def assert_parts_are_connected(labels: np.ndarray, uv: np.ndarray) -> None:
    """Every part is one component, and parts are numbered in the order of their first nodes."""
    reached = np.arange(len(labels))
    for _ in range(len(labels)):
        for u, v in uv[labels[uv[:, 0]] == labels[uv[:, 1]]]:
            reached[u] = reached[v] = min(reached[u], reached[v])
    assert len(np.unique(reached)) == labels.max() + 1
    _, first = np.unique(labels, return_index=True)
    assert (np.diff(first) > 0).all()


@pytest.mark.parametrize("starts", [1, 3])
def test_degenerate_graphs(starts: int) -> None:
    none, no_cost = np.zeros((0, 2), np.int64), np.zeros(0)
    pairs = np.array([[0, 1], [1, 2], [3, 4], [0, 1]])
    ones = np.ones(4)
    assert solve_multicut(0, none, no_cost, starts).tolist() == []
    assert solve_multicut(1, none, no_cost, starts).tolist() == [0]
    assert solve_multicut(1, np.array([[0, 0]]), np.ones(1), starts).tolist() == [0]
    assert solve_multicut(3, none, no_cost, starts).tolist() == [0, 1, 2]
    assert solve_multicut(5, pairs, ones, starts).tolist() == [0, 0, 0, 1, 1]
    assert solve_multicut(5, pairs, -ones, starts).tolist() == [0, 1, 2, 3, 4]
    assert solve_multicut(5, pairs, np.array([1.0, 2.0, 1.0, -3.0]), starts).tolist() == [0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="finite"):
        solve_multicut(5, pairs, np.full(4, np.nan), starts)


def test_the_bound_of_a_single_cycle_is_its_optimum() -> None:
    # Cutting the negative edge requires a second cut: -3 + 1 in the triangle, -5 + 1 in the square.
    assert multicut_lower_bound(3, np.array([[0, 1], [1, 2], [0, 2]]), np.array([2.0, 1.0, -3.0])) == -2
    square = np.array([[0, 1], [1, 2], [2, 3], [0, 3]])
    assert multicut_lower_bound(4, square, np.array([2.0, 1.0, 3.0, -5.0])) == -4
    assert multicut_lower_bound(1, np.zeros((0, 2), np.int64), np.zeros(0)) == 0


def test_more_rounds_close_the_gap() -> None:
    uv = np.array([(u, v) for u in range(12) for v in range(u + 1, 12)])
    cost = np.random.default_rng(3).normal(0, 1, len(uv))
    bounds = [multicut_lower_bound(12, uv, cost, rounds) for rounds in (1, 2, 4, 8)]
    assert bounds == sorted(bounds)
    assert bounds[-1] > bounds[0]


@pytest.fixture
def reference(development_data: Callable[[str], Path]) -> list[tuple[int, np.ndarray, np.ndarray, float]]:
    """Reference cases: nodes, edges, costs, and the better objective of two independent programs."""
    paths = sorted(development_data("reference/multicut").glob("*.npz"))
    cases = [np.load(path) for path in paths]
    return [
        (int(case["num_nodes"]), case["uv"], case["cost"], float(case["objective_kernighan_lin"].min()))
        for case in cases
    ]


def test_reference_cases(reference: list[tuple[int, np.ndarray, np.ndarray, float]]) -> None:
    ratios, fast_ratios, gaps, seconds = [], [], [], []
    for num_nodes, uv, cost, best in reference:
        start = time.process_time()
        labels = solve_multicut(num_nodes, uv, cost)
        seconds.append(time.process_time() - start)
        objective = multicut_objective(labels, uv, cost)
        bound = multicut_lower_bound(num_nodes, uv, cost)
        ratios.append(objective / best)
        fast_ratios.append(multicut_objective(solve_multicut(num_nodes, uv, cost, starts=1), uv, cost) / best)
        gaps.append((objective - bound) / -bound)
        assert bound <= min(objective, best)
    # Objectives are negative: a ratio above 1 is better.
    assert np.mean(ratios) >= 1
    assert min(ratios) >= 1 - 0.015
    assert min(fast_ratios) >= 1 - 0.015
    assert np.mean(gaps) < 0.05
    assert np.mean(seconds) < 1.2  # a margin of two for busy machines
    assert np.array_equal(labels, solve_multicut(*reference[-1][:3]))


def rectangle_features(size: tuple[int, int], *objects: tuple[slice, slice]) -> np.ndarray:
    """Features (h, w, 8) of rectangles on a background, each along its own axis, with weak noise."""
    features = np.tile(np.eye(8)[0], (*size, 1))
    for i, window in enumerate(objects):
        features[window] = np.eye(8)[i + 1]
    noise = 0.05 * np.random.default_rng(0).standard_normal(features.shape)
    return (features + noise).astype(np.float32)


def test_objects_on_a_plain_background_are_found() -> None:
    first, second = np.s_[2:8, 3:9], np.s_[12:22, 14:30]
    result = run_multicut(rectangle_features((24, 36), first, second), CONFIG)
    expected = np.zeros((2, 24, 36), bool)
    expected[0][first] = expected[1][second] = True
    assert np.array_equal(result.masks, expected)
    assert result.labels[0, 0] == 0
    assert result.skipped is None
    # Without conflicted cycles the optimum cuts all negative edges, and the bound is tight.
    assert result.optimality.objective < 0
    assert result.optimality.gap < 0.02


def test_features_may_have_any_length_and_dtype() -> None:
    features = rectangle_features((12, 20), np.s_[3:8, 5:12])
    expected = run_multicut(features, CONFIG).masks
    assert np.array_equal(run_multicut(torch.as_tensor(features).double() * 7, CONFIG).masks, expected)
    assert np.array_equal(run_multicut((features * 0.1).astype(np.float16), CONFIG).masks, expected)


def test_a_constant_image_is_skipped_with_a_reason() -> None:
    result = run_multicut(np.ones((5, 7, 3), np.float32), CONFIG)
    assert (result.masks.shape, result.skipped) == ((0, 5, 7), Reason.NO_FOREGROUND)
    assert (result.optimality.objective, result.optimality.gap) == (0, 0)
    assert run_multicut(np.ones((1, 1, 3), np.float32), CONFIG).skipped == Reason.NO_FOREGROUND


def test_background_and_tiny_parts_are_dropped() -> None:
    labels = np.zeros((6, 8), np.int64)
    labels[2:4, 2:4] = 1
    labels[5, 7] = 2
    (mask,) = part_masks(labels, CONFIG)
    assert np.array_equal(mask, labels == 1)
    assert len(part_masks(labels, replace(CONFIG, min_patches=1))) == 2
    assert len(part_masks(labels, replace(CONFIG, min_patches=5))) == 0
    assert len(part_masks(labels, replace(CONFIG, border_coverage=1.0))) == 2


def test_non_finite_features_raise_with_the_image_name() -> None:
    features = np.ones((4, 5, 2), np.float32)
    features[1, 2, 0] = np.inf
    with pytest.raises(ImageError, match=r"non_finite.*street\.jpg"):
        run_multicut(features, CONFIG, "street.jpg")


@pytest.mark.parametrize(
    "wrong",
    [
        {"distances": ()},
        {"distances": (1, 1, 3)},
        {"biases": (0.1,)},
        {"biases": (0.1, 0.1, np.nan)},
        {"starts": 0},
        {"border_coverage": 1.5},
        {"border_sides": 0},
    ],
)
def test_settings_out_of_range_name_the_field(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        replace(CONFIG, **wrong)
