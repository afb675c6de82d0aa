import numpy as np
import pytest

from engine.proposals.merge_tree import MergeRule, MergeTree, grow_tree
from engine.proposals.tree_leaves import Borders

FEATURES_ONLY = MergeRule(border_weight=0.0, size_power=0.0)


def chain(*strengths: float) -> Borders:
    """Leaves in a row; neighbours share two pixel sides of the given strength each."""
    count = len(strengths) + 1
    lengths, sums = np.zeros((count, count)), np.zeros((count, count))
    for i, strength in enumerate(strengths):
        lengths[i, i + 1] = lengths[i + 1, i] = 2
        sums[i, i + 1] = sums[i + 1, i] = 2 * strength
    return Borders(lengths, sums)


def directions(*degrees: float) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_the_most_similar_neighbours_merge_first() -> None:
    # 0 and 2 are equal but no neighbours. 1 and 2 merge, and their mean has 20 degrees.
    tree = grow_tree(directions(0, 40, 0, 90), np.ones(4), chain(0, 0, 0), FEATURES_ONLY)
    assert tree.merges.tolist() == [[0, 1], [4, 2], [5, 3]]
    assert np.allclose(tree.heights[0], 1 - np.cos(np.deg2rad(40)))
    assert tree.members()[4:].tolist() == [
        [True, True, False, False],
        [True, True, True, False],
        [True, True, True, True],
    ]


def test_a_mean_feature_is_weighted_by_area() -> None:
    # (3 x 0 degrees + 1 x 90 degrees): its tangent is 1/3; leaf 2 lies at 90 degrees.
    tree = grow_tree(directions(0, 90, 90), np.array([3.0, 1.0, 1.0]), chain(0, 5), MergeRule(1.0, 0.0))
    assert tree.merges.tolist() == [[0, 1], [3, 2]]
    assert np.allclose(tree.heights, [1.0, 1 - np.sin(np.arctan(1 / 3)) + 5])


def test_a_strong_border_keeps_similar_regions_apart() -> None:
    features, areas = directions(0, 0, 60), np.ones(3)
    assert grow_tree(features, areas, chain(1.0, 0.1), FEATURES_ONLY).merges[0].tolist() == [0, 1]
    assert grow_tree(features, areas, chain(1.0, 0.1), MergeRule(1.0, 0.0)).merges[0].tolist() == [1, 2]


def test_small_regions_merge_sooner() -> None:
    # Mean area 5; h / m is 1/10 for the small pair (1, 1) and 9/10 for the large pair (9, 9).
    features, areas = directions(0, 60, 60, 90), np.array([1.0, 1.0, 9.0, 9.0])
    tree = grow_tree(features, areas, chain(0, 9, 0), MergeRule(1.0, 1.0))
    assert tree.merges[0].tolist() == [0, 1]
    assert np.allclose(tree.heights[:2], [0.5 * 0.1, (1 - np.cos(np.deg2rad(30))) * 0.9])


def test_of_equals_the_first_pair_merges_first() -> None:
    tree = grow_tree(directions(0, 0, 0, 0), np.ones(4), chain(0, 0, 0), FEATURES_ONLY)
    assert tree.merges.tolist() == [[0, 1], [4, 2], [5, 3]]
    assert tree.heights.tolist() == [0, 0, 0]


def test_heights_never_fall() -> None:
    # The mean of 0 and 90 degrees is nearer to 45 degrees than its parts are.
    borders = Borders(np.ones((3, 3)) - np.eye(3), np.array([[0, 0, 9], [0, 0, 9], [9, 9, 0.0]]))
    tree = grow_tree(directions(0, 90, 45), np.ones(3), borders, MergeRule(0.0, 0.0))
    assert (np.diff(tree.heights) >= 0).all()
    assert tree.merges[0].tolist() == [0, 2]


def test_vanishing_features_are_as_far_as_orthogonal_ones() -> None:
    tree = grow_tree(np.array([[0.0, 0.0], [1.0, 0.0]]), np.ones(2), chain(0), FEATURES_ONLY)
    assert tree.heights.tolist() == [1.0]


def test_one_leaf_is_a_tree_without_merges() -> None:
    tree = grow_tree(directions(0), np.ones(1), chain(), FEATURES_ONLY)
    assert tree.num_leaves == 1
    assert tree.members().tolist() == [[True]]
    assert tree.lifetimes().tolist() == [0.0]


@pytest.mark.parametrize("seed", range(5))
def test_every_step_takes_the_least_of_all_dissimilarities(seed: int) -> None:
    """Against merging written without tables."""
    rng = np.random.default_rng(seed)
    count, rule = 12, MergeRule(0.5, 0.4)
    features, areas = rng.normal(size=(count, 3)), rng.integers(1, 9, count).astype(float)
    lengths = np.triu(rng.integers(0, 3, (count, count)), 1).astype(float)
    lengths[np.arange(count - 1), np.arange(1, count)] = 1
    strengths = lengths * np.triu(rng.random((count, count)), 1)
    borders = Borders(lengths + lengths.T, strengths + strengths.T)
    before = (borders.lengths.copy(), areas.copy())
    tree = grow_tree(features, areas, borders, rule)
    assert np.array_equal(before[0], borders.lengths)
    assert np.array_equal(before[1], areas)
    assert_greedy(tree, features, areas, borders, rule)


def assert_greedy(
    tree: MergeTree, features: np.ndarray, areas: np.ndarray, borders: Borders, rule: MergeRule
) -> None:
    members = tree.members().astype(float)
    alive, height = list(range(tree.num_leaves)), 0.0
    for step, (first, second) in enumerate(tree.merges):
        values = {}
        for a in alive:
            for b in alive:
                length = members[a] @ borders.lengths @ members[b]
                if a < b and length > 0:
                    sums = members[[a, b]] * areas @ features
                    cosine = sums[0] @ sums[1] / np.linalg.norm(sums[0]) / np.linalg.norm(sums[1])
                    size_a, size_b = members[[a, b]] @ areas / areas.mean()
                    contrast = (
                        1
                        - cosine
                        + rule.border_weight * (members[a] @ borders.strengths @ members[b] / length)
                    )
                    values[a, b] = contrast * (size_a * size_b / (size_a + size_b)) ** rule.size_power
        height = max(height, min(values.values()))
        assert np.isclose(values[min(first, second), max(first, second)], min(values.values()))
        assert np.isclose(tree.heights[step], height)
        alive = [node for node in alive if node not in (first, second)] + [tree.num_leaves + step]
