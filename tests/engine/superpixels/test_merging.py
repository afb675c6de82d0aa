import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.superpixels.merging import MergeRule, Regions, merge_regions
from engine.superpixels.watershed import Arcs, flood, measure_arcs

BY_STRENGTH = MergeRule(0.0, 0.0, 1e12, 0.0)


def chain(strengths, lengths=None):
    """A chain of regions of 2 pixels each, with arcs of these strengths between neighbours."""
    count = len(strengths) + 1
    pairs = np.stack([np.arange(count - 1), np.arange(1, count)], axis=1).astype(np.int32)
    lengths = np.ones(len(strengths)) if lengths is None else np.array(lengths, float)
    arcs = Arcs(pairs, np.array(strengths, float), lengths)
    return arcs, Regions(np.full(count, 2.0), np.zeros((count, 3)))


def test_weak_arcs_merge_first_and_heights_do_not_decrease():
    arcs, regions = chain([3.0, 1.0, 2.0])
    pairs, heights = merge_regions(arcs, regions, BY_STRENGTH)
    # 1 and 2 merge with h = 2 * 2 / 4 = 1; {1, 2} of 4 pixels and 3 with h = 4 * 2 / 6; 0 with h = 6 * 2 / 8.
    assert pairs.tolist() == [[1, 2], [1, 3], [0, 1]]
    np.testing.assert_allclose(heights, [1.0, 2.0 * 4 * 2 / 6, 3.0 * 6 * 2 / 8])


def test_arcs_to_one_neighbour_are_averaged_by_length():
    # A triangle: 0-1 merges first, which joins the arcs 0-2 (strength 6, 1 side) and 1-2 (2, 3 sides).
    arcs = Arcs(
        np.array([[0, 1], [0, 2], [1, 2]], np.int32), np.array([0.1, 6.0, 2.0]), np.array([1.0, 1, 3])
    )
    regions = Regions(np.ones(3), np.zeros((3, 3)))
    pairs, heights = merge_regions(arcs, regions, BY_STRENGTH)
    assert pairs.tolist() == [[0, 1], [0, 2]]
    np.testing.assert_allclose(heights, [0.1 / 2, (6 + 2) / 4 * 2 / 3])


def test_inputs_are_not_modified_and_equal_arcs_merge_in_order():
    arcs, regions = chain([1.0, 1.0, 1.0])
    pairs, _ = merge_regions(arcs, regions, BY_STRENGTH)
    assert pairs.tolist()[:2] == [[0, 1], [2, 3]]
    assert arcs.strengths.tolist() == [1.0, 1.0, 1.0]
    assert regions.areas.tolist() == [2.0] * 4


def test_a_single_region_has_no_merges():
    arcs = Arcs(np.empty((0, 2), np.int32), np.empty(0), np.empty(0))
    pairs, heights = merge_regions(arcs, Regions(np.ones(1), np.zeros((1, 3))), BY_STRENGTH)
    assert pairs.shape == (0, 2)
    assert heights.shape == (0,)


def test_colour_and_floor_enter_as_in_the_rule():
    arcs, regions = chain([0.0])
    regions.colours[1] = (30.0, 40.0, 0.0)
    _, heights = merge_regions(arcs, regions, MergeRule(0.25, 0.5, 1.0, 0.0))
    # (0.25 + 0 + 0.5 * 50 / 100) * h / (1 + h / 1) with h = 1
    assert heights.tolist() == [0.25]


def test_the_longer_of_two_equal_arcs_vanishes_first():
    # Both have mean strength 1; the second is 4 times as long.
    arcs, regions = chain([1.0, 4.0], lengths=[1, 4])
    pairs, heights = merge_regions(arcs, regions, MergeRule(0.0, 0.0, 1e12, 0.5))
    assert pairs.tolist() == [[1, 2], [0, 1]]
    np.testing.assert_allclose(heights, [4**-0.5, 4 / 3])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 12), width=st.integers(1, 12))
def test_every_region_is_absorbed_once_by_a_smaller_label(seed, height, width):
    tensor = np.abs(np.random.default_rng(seed).normal(size=(height, width, 3))).astype(np.float32)
    tensor[..., 1] = 0
    labels = flood(tensor, 2)
    count = labels.max() + 1
    regions = Regions(np.bincount(labels.ravel()).astype(float), np.zeros((count, 3)))
    pairs, heights = merge_regions(measure_arcs(labels, tensor), regions, MergeRule(0.1, 0.1, 10.0, 0.1))
    assert sorted(pairs[:, 1].tolist()) == list(range(1, count))
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert (np.diff(heights) >= 0).all()


def step_tensor(height, width, column):
    """A boundary tensor with a vertical boundary of strength 1 between `column` - 1 and `column`."""
    tensor = np.zeros((height, width, 3), np.float32)
    tensor[:, column - 1 : column + 1, 0] = 1
    return tensor


def test_flooding_stops_at_a_boundary():
    labels = flood(step_tensor(8, 16, 9), 8)
    assert (labels == (np.arange(16) >= 9)).all()


def test_an_arc_along_a_boundary_is_strong_and_one_across_it_is_weak():
    labels = np.zeros((6, 8), np.int32)
    labels[:, 4:] = 1
    along = measure_arcs(labels, step_tensor(6, 8, 4))
    assert along.pairs.tolist() == [[0, 1]]
    assert along.lengths.tolist() == [6.0]
    np.testing.assert_allclose(along.strengths, [6.0], rtol=1e-5)
    across = measure_arcs(
        np.ascontiguousarray((np.arange(6) >= 3)[:, None].repeat(8, 1)).astype(np.int32), step_tensor(6, 8, 4)
    )
    assert across.lengths.tolist() == [8.0]
    np.testing.assert_allclose(across.strengths, [0.0], atol=1e-5)
