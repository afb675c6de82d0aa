"""The lattice filter against Gaussians and sums computed directly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.errors import ConfigurationError
from engine.refine.gaussian import make_kernel, splat_and_blur
from engine.refine.lanes import make_lanes
from engine.refine.lattice import build_lattice
from engine.refine.threads import Team


def random_features(dimension: int, num_pixels: int, spread: float, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0, spread, (dimension, num_pixels)).astype(np.float32)


def filtered(features: NDArray[np.float32], values: NDArray[np.float32], team: Team) -> NDArray[np.float32]:
    """A B A^T values for one channel of values (P,)."""
    kernel = make_kernel(features, 1.0, team)
    on_vertices = splat_and_blur(kernel, np.ascontiguousarray(values[:, None]), make_lanes(1), team)
    return (kernel.rows.weights * on_vertices[kernel.rows.vertices, 0]).sum(axis=1)


@given(st.sampled_from([2, 5]), st.integers(1, 200), st.sampled_from([0.0, 1.0, 30.0]), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_weights_are_barycentric_over_distinct_vertices(
    dimension: int, num_pixels: int, spread: float, seed: int
) -> None:
    with Team(1) as team:
        lattice = build_lattice(random_features(dimension, num_pixels, spread, seed), team)
    assert (lattice.weights > -1e-5).all()
    assert np.allclose(lattice.weights.sum(axis=1), 1, atol=1e-5)
    assert set(lattice.vertices.ravel().tolist()) == set(range(lattice.num_vertices))
    assert all(len(set(row)) == dimension + 1 for row in lattice.vertices.tolist())
    for chains in lattice.chains:
        vertices = chains.order[:-1].tolist()
        assert len(set(vertices)) == len(vertices)
        assert chains.link[0] == chains.link[-1] == 0


def test_equal_features_share_a_simplex_and_vertices_are_numbered_in_order() -> None:
    features = np.array([[0.1, 9.0, 0.1], [0.2, 9.0, 0.2]], np.float32)
    with Team(1) as team:
        lattice = build_lattice(features, team)
    assert lattice.vertices.tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]


def test_the_corners_of_one_simplex_are_neighbours_along_every_axis() -> None:
    # In 2 dimensions the corners of a triangle are pairwise neighbours: each axis links one pair.
    with Team(1) as team:
        lattice = build_lattice(np.array([[0.1], [0.05]], np.float32), team)
    linked = sorted(sorted(chains.order[:-1].tolist()) for chains in lattice.chains)
    assert linked == [[0, 1], [0, 2], [1, 2]]
    assert all(chains.link.tolist() == [0, 0.5, 0] for chains in lattice.chains)


def test_filter_approximates_the_normalised_gaussian_in_the_plane() -> None:
    rows, columns = np.indices((40, 52), np.float32)
    features = np.stack([columns.ravel(), rows.ravel()]) / np.float32(4)
    values = (np.random.default_rng(2).random(features.shape[1]) < 0.5).astype(np.float32)
    gaussian = np.exp(-((features[:, :, None] - features[:, None, :]) ** 2).sum(axis=0) / 2)
    norms = 1 / np.sqrt(gaussian.sum(axis=1))
    expected = norms * (gaussian @ (norms * values))
    with Team(1) as team:
        measured = filtered(features, values, team)
    assert np.abs(measured - expected).max() < 0.05
    assert np.corrcoef(measured, expected)[0, 1] > 0.99


def test_distant_pixels_do_not_influence_each_other() -> None:
    features = np.zeros((5, 2), np.float32)
    features[2:, 1] = 40
    with Team(1) as team:
        result = filtered(features, np.array([1, -3], np.float32), team)
    assert np.allclose(result, [1, -3], atol=1e-5)


def test_weight_scales_the_kernel() -> None:
    features = random_features(2, 50, 5.0, seed=1)
    with Team(1) as team:
        single, heavy = (make_kernel(features, weight, team) for weight in (1.0, 7.0))
    assert np.allclose(heavy.rows.weights, single.rows.weights * np.sqrt(7), rtol=1e-5)
    assert np.allclose(heavy.columns.weights, single.columns.weights * np.sqrt(7), rtol=1e-5)


def test_rows_and_columns_hold_the_same_matrix() -> None:
    with Team(1) as team:
        kernel = make_kernel(random_features(5, 300, 3.0, seed=4), 2.0, team)
    num_pixels = 300
    by_rows = np.zeros((num_pixels, kernel.num_vertices), np.float32)
    np.put_along_axis(by_rows, kernel.rows.vertices.astype(np.int64), kernel.rows.weights, axis=1)
    by_columns = np.zeros_like(by_rows)
    vertices = np.repeat(np.arange(kernel.num_vertices), np.diff(kernel.columns.starts))
    by_columns[kernel.columns.pixels, vertices] = kernel.columns.weights
    assert np.array_equal(by_rows, by_columns)


@pytest.mark.parametrize("num_threads", [2, 3, 8])
def test_threads_do_not_change_a_bit(num_threads: int) -> None:
    features = random_features(5, 5000, 4.0, seed=7)
    values = random_features(1, 5000, 1.0, seed=8)[0]
    with Team(1) as one, Team(num_threads) as many:
        assert np.array_equal(filtered(features, values, one), filtered(features, values, many))


def test_more_threads_than_pixels() -> None:
    with Team(4) as team:
        assert filtered(np.zeros((2, 1), np.float32), np.ones(1, np.float32), team).shape == (1,)


def test_deviations_too_small_for_the_keys_are_refused() -> None:
    features = random_features(5, 10, 1e6, seed=0)
    with Team(1) as team, pytest.raises(ConfigurationError, match="raise gaussian_sigma_xy"):
        build_lattice(features, team)
