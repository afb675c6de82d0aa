import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.superpixels.graph import adjacent_pairs, build_graph, labels_at_stride
from engine.superpixels.hierarchy import number_by_first_pixel

# Four superpixels in a square; grey values 0, 0.5 / 0.1, 0.9.
LABELS = np.int32([[0, 0, 1], [2, 2, 3]])
IMAGE = np.float32([[0, 0, 0.5], [0.1, 0.1, 0.9]])[..., None].repeat(3, axis=2)


def random_case(seed, height=7, width=11, num_labels=9):
    rng = np.random.default_rng(seed)
    labels = number_by_first_pixel(rng.integers(0, num_labels, (height, width)))
    return rng.random((height, width, 3), np.float32), labels


def test_spanning_tree_worked_by_hand():
    graph = build_graph(IMAGE, LABELS)
    # Weights are 3 (difference of grey)^2: 0-2 0.03, 1-3 0.48, 0-1 0.75, 2-3 1.92 (closes a cycle).
    assert graph.tree_edges.tolist() == [[0, 2], [1, 3], [0, 1]]
    np.testing.assert_allclose(graph.tree_weights, [0.03, 0.48, 0.75], rtol=1e-5)
    expected = [
        [0.00, 0.75, 0.03, 0.75],
        [0.75, 0.00, 0.75, 0.48],
        [0.03, 0.75, 0.00, 0.75],
        [0.75, 0.48, 0.75, 0.00],
    ]
    np.testing.assert_allclose(graph.merge_heights(), expected, rtol=1e-5)


def test_affinities_worked_by_hand():
    affinities = build_graph(IMAGE, LABELS).affinities(0.03)
    np.testing.assert_allclose(affinities[0], np.exp([0, -25, -1, -25]), rtol=1e-4)


def test_one_superpixel_has_an_empty_tree():
    graph = build_graph(np.full((3, 5, 3), 0.25, np.float32), np.zeros((3, 5), np.int32))
    assert graph.mean_colours.tolist() == [[0.25] * 3]
    assert graph.tree_edges.shape == (0, 2)
    assert graph.affinities(0.003).tolist() == [[1.0]]
    assert graph.merge_heights().tolist() == [[0.0]]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_merge_heights_are_the_minimax_path_weights(seed):
    image, labels = random_case(seed)
    graph = build_graph(image, labels)
    count = len(graph.mean_colours)
    assert len(graph.tree_edges) == count - 1
    # The minimax path weight over all paths of the adjacency graph, by brute force (Floyd-Warshall).
    bottlenecks = np.full((count, count), np.inf)
    np.fill_diagonal(bottlenecks, 0)
    for first, second in adjacent_pairs(labels):
        weight = ((graph.mean_colours[first] - graph.mean_colours[second]) ** 2).sum()
        bottlenecks[first, second] = bottlenecks[second, first] = weight
    for middle in range(count):
        through = np.maximum(bottlenecks[:, middle, None], bottlenecks[None, middle])
        bottlenecks = np.minimum(bottlenecks, through)
    np.testing.assert_allclose(graph.merge_heights(), bottlenecks, rtol=1e-5, atol=1e-7)


def test_affinities_equal_their_own_max_min_closure():
    image, labels = random_case(3, 12, 17, 30)
    affinities = build_graph(image, labels).affinities(0.1)
    assert np.array_equal(affinities, affinities.T)
    weakest = np.minimum(affinities[:, :, None], affinities[None]).max(axis=1)
    np.testing.assert_allclose(weakest, affinities)


@pytest.mark.parametrize("stride", [1, 2, 4, 16])
def test_majority_equals_the_most_frequent_label_of_each_block(stride):
    _, labels = random_case(5, 13, 10, 4)
    coarse = labels_at_stride(labels, stride)
    assert coarse.shape == (-(-13 // stride), -(-10 // stride))
    for row in range(coarse.shape[0]):
        for column in range(coarse.shape[1]):
            top, left = row * stride, column * stride
            block = labels[top : top + stride, left : left + stride]
            assert coarse[row, column] == np.bincount(block.ravel()).argmax()


def test_invalid_input_raises():
    with pytest.raises(ValueError, match="labels are"):
        build_graph(IMAGE, LABELS[:1])
    with pytest.raises(ValueError, match="1 has no pixel"):
        build_graph(IMAGE, np.where(LABELS == 1, 0, LABELS).astype(np.int32))
