import numpy as np
import pytest
import torch

from engine.errors import ImageError
from engine.proposals.affinity_graph import edge_affinities, grid_edges
from engine.proposals.offsets import ring_offsets

OFFSETS = ((0, 1), (1, -1), (-2, 1), (0, -3), (9, 9))


def literal_edges(size: tuple[int, int], offsets: tuple[tuple[int, int], ...]) -> list[tuple[int, int, int]]:
    """(u, v, class) of every edge, from nested loops over the patches."""
    edges = []
    for number, (rows, columns) in enumerate(offsets):
        for row in range(size[0]):
            for column in range(size[1]):
                to_row, to_column = row + rows, column + columns
                if 0 <= to_row < size[0] and 0 <= to_column < size[1]:
                    edges.append((row * size[1] + column, to_row * size[1] + to_column, number))
    return edges


@pytest.mark.parametrize("size", [(4, 7), (1, 5), (1, 1), (10, 10)])
def test_edges_and_cosines_equal_those_of_nested_loops(size: tuple[int, int]) -> None:
    features = torch.randn((3, *size, 6), generator=torch.Generator().manual_seed(0))
    features[1, 0, 0] = 0
    uv, classes = grid_edges(size, OFFSETS)
    expected = literal_edges(size, OFFSETS)
    assert [(*pair, number) for pair, number in zip(uv.tolist(), classes.tolist(), strict=True)] == expected
    affinities = edge_affinities(features, OFFSETS, ("a", "b", "c"))
    assert affinities.shape == (3, len(expected))
    flat = features.reshape(3, -1, 6)
    for edge, (u, v, _) in enumerate(expected):
        cosines = torch.nn.functional.cosine_similarity(flat[:, u], flat[:, v], dim=1)
        assert affinities[:, edge].numpy() == pytest.approx(cosines.numpy(), abs=1e-6)


def test_edges_equal_those_of_the_reference_graph(development_data: object) -> None:
    case = np.load(sorted(development_data("reference/multicut").glob("*.npz"))[0])
    offsets = [offset for distance in (1, 3, 9) for offset in ring_offsets(distance)]
    uv, _ = grid_edges((60, 60), offsets)
    assert {tuple(pair) for pair in uv.tolist()} == {tuple(sorted(pair)) for pair in case["uv"].tolist()}


@pytest.mark.parametrize("offsets", [((0, 0),), ((0, 1), (0, 1)), ((1, -1), (-1, 1))])
def test_zero_and_repeated_offsets_are_refused(offsets: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="offsets must be distinct"):
        grid_edges((3, 3), offsets)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_the_image_with_non_finite_features_is_named(value: float) -> None:
    features = torch.ones((3, 2, 4, 5), dtype=torch.float16)
    features[1, 1, 2, 3] = value
    with pytest.raises(ImageError, match="'second'"):
        edge_affinities(features, ring_offsets(1), ("first", "second", "third"))


def test_no_offsets_make_no_edges() -> None:
    uv, classes = grid_edges((3, 4), ())
    assert (uv.shape, classes.shape) == ((0, 2), (0,))
    assert edge_affinities(torch.ones((2, 3, 4, 1)), (), ("a", "b")).shape == (2, 0)
