from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigurationError
from engine.proposals.config import TreeConfig
from engine.proposals.merge_tree import MergeTree
from engine.proposals.tree import choose_regions, rank_regions, relative_scores, run_tree
from engine.proposals.tree_leaves import Borders, Leaves, make_leaves, shrink
from engine.proposals.tree_scores import measure_cues, score_regions
from engine.types import Reason

CONFIG = TreeConfig(num_leaves=40)


def scene(size: tuple[int, int], *places: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) with bright rectangles on a dark ground, and a feature for each 8 x 8 pixels."""
    image = np.full((*size, 3), 30, np.uint8)
    features = np.tile(np.float32([1, 0, 0]), (size[0] // 8, size[1] // 8, 1))
    for number, (rows, columns) in enumerate(places):
        image[rows, columns] = 250 - 60 * number
        inside = np.s_[rows.start // 8 : rows.stop // 8, columns.start // 8 : columns.stop // 8]
        features[inside] = np.eye(3)[number + 1]
    return features, image


def row_of_leaves(areas: list[float], features: list[list[float]], sides: list[list[int]]) -> Leaves:
    """Leaves in a row, neighbours share 2 pixel sides of strength 0.5; labels only give the size."""
    count = len(areas)
    lengths = 2.0 * (np.eye(count, k=1) + np.eye(count, k=-1))
    side_pixels = np.array(sides)
    return Leaves(
        labels=np.zeros((2, int(sum(areas)) // 2), np.int32),
        areas=np.array(areas),
        features=np.float32(features),
        borders=Borders(lengths, lengths / 2),
        side_pixels=side_pixels,
        background=side_pixels.sum(axis=1).astype(float),
    )


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


def test_objects_are_the_best_masks() -> None:
    places = (np.s_[16:56, 16:48], np.s_[24:72, 72:120])
    features, image = scene((96, 144), *places)
    found = run_tree(features, image, CONFIG)
    assert found.masks.shape[1:] == (96, 144)
    assert found.skipped is None
    for place in places:
        truth = np.zeros((96, 144), bool)
        truth[place] = True
        assert max(iou(mask, truth) for mask in found.masks[:3]) > 0.95


def test_scores_fall_and_masks_differ() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 96, 3)).astype(np.uint8)
    found = run_tree(rng.normal(size=(8, 12, 5)).astype(np.float16), image, CONFIG)
    assert len(found.masks) == len(found.scores) > 10
    assert found.scores.dtype == np.float32
    assert (np.diff(found.scores) <= 0).all()
    ious = [iou(a, b) for i, a in enumerate(found.masks) for b in found.masks[:i]]
    assert max(ious) <= CONFIG.duplicate_iou


def test_fewer_masks_are_the_first_of_more() -> None:
    features, image = scene((64, 64), np.s_[16:40, 16:40])
    many = run_tree(features, image, replace(CONFIG, min_area=0))
    few = run_tree(features, image, replace(CONFIG, min_area=0, max_masks=2))
    assert np.array_equal(few.masks, many.masks[:2])


@settings(max_examples=20, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    leaves=st.integers(1, 30),
    is_plain=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_image_gives_masks_of_its_size(
    size: tuple[int, int], grid: tuple[int, int], leaves: int, is_plain: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    image = np.full((*size, 3), 7, np.uint8) if is_plain else rng.integers(0, 256, (*size, 3), np.uint8)
    features = np.zeros((*grid, 2), np.float32) if is_plain else rng.normal(size=(*grid, 2))
    config = TreeConfig(num_leaves=leaves, segment_side_px=16)
    found = run_tree(features, image, config)
    assert found.masks.shape == (len(found.scores), *size)
    assert found.masks.any(axis=(1, 2)).all()
    assert (found.skipped is Reason.NO_FOREGROUND) == (len(found.masks) == 0)
    assert np.isfinite(found.scores).all()
    again = run_tree(features, image, config)
    assert np.array_equal(again.masks, found.masks)
    assert np.array_equal(again.scores, found.scores)


def test_one_pixel_is_background() -> None:
    found = run_tree(np.ones((1, 1, 3), np.float32), np.zeros((1, 1, 3), np.uint8), CONFIG)
    assert found.masks.shape == (0, 1, 1)
    assert found.skipped is Reason.NO_FOREGROUND


def test_features_may_be_of_any_length_and_kind() -> None:
    features, image = scene((64, 96), np.s_[16:40, 16:72])
    expected = run_tree(features, image, CONFIG)
    for other in (features.astype(np.float16), torch.from_numpy(features).double(), features * 8):
        found = run_tree(other, image, CONFIG)
        assert np.array_equal(found.masks, expected.masks)
        assert np.array_equal(found.scores, expected.scores)


def test_features_must_be_finite_and_have_three_axes() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="finite"):
        run_tree(np.full((2, 2, 2), np.nan), image, CONFIG)
    with pytest.raises(ValueError, match="shape"):
        run_tree(np.zeros((2, 2)), image, CONFIG)


def test_what_covers_two_sides_is_background() -> None:
    # Leaf 0 covers the top and the left side, leaf 1 nothing, leaf 2 the bottom.
    leaves = row_of_leaves([4, 4, 4], [[1, 0], [0, 1], [1, 0]], [[6, 0, 2, 0], [0, 0, 0, 0], [0, 6, 0, 2]])
    tree = MergeTree(merges=np.array([[0, 2], [3, 1]]), heights=np.array([1.0, 2.0]))
    members, _ = rank_regions(leaves, tree, TreeConfig(border_sides=2))
    assert members.tolist() == [[False, True, False]]
    members, _ = rank_regions(leaves, tree, TreeConfig(border_sides=3))
    assert members.any(axis=0).all()


def test_in_a_tile_background_is_what_the_whole_image_shows() -> None:
    features, image = scene((64, 64), np.s_[0:64, 0:32])
    seen = np.zeros((8, 8), bool)
    seen[:, 4:] = True
    found = run_tree(features, image, CONFIG, seen)
    left = np.zeros((64, 64), bool)
    left[:, :32] = True
    assert iou(found.masks[0], left) > 0.95
    assert all(mask[:, 32:].sum() <= 0.5 * 64 * 32 for mask in found.masks)
    # Without background anywhere, nothing is background.
    nothing = run_tree(features, image, CONFIG, np.zeros((3, 5), bool))
    assert len(nothing.masks) > len(found.masks)
    assert np.isfinite(nothing.scores).all()


def test_leaves_share_the_image() -> None:
    features, image = scene((64, 96), np.s_[16:40, 16:72])
    leaves = make_leaves(features, image, TreeConfig(num_leaves=12, segment_side_px=48))
    assert leaves.labels.shape == (32, 48)
    assert np.unique(leaves.labels).tolist() == list(range(12))
    assert leaves.areas.sum() == 32 * 48
    assert leaves.side_pixels.sum(axis=0).tolist() == [48, 48, 32, 32]
    # Every feature is a mix of unit vectors along two axes, by bilinear weights that sum to 1.
    assert np.allclose(leaves.features.sum(axis=1), 1)
    assert np.array_equal(leaves.borders.lengths, leaves.borders.lengths.T)


def test_shrinking_keeps_small_images_and_means_large_ones() -> None:
    image = np.uint8([[[0, 0, 0], [100, 0, 0]], [[0, 0, 0], [100, 0, 0]]])
    assert np.array_equal(shrink(image, 2), image)
    assert shrink(image, 1).tolist() == [[[50, 0, 0]]]
    assert shrink(np.zeros((4, 400, 3), np.uint8), 40).shape == (1, 40, 3)


def test_cues_by_hand() -> None:
    # Leaf 0 is the background; the region is leaves 1 and 2.
    leaves = row_of_leaves([8, 1, 3], [[1, 0], [0, 1], [0, 1]], [[4, 4, 2, 0], [0, 0, 0, 0], [0, 0, 0, 2]])
    leaves = replace(leaves, background=np.array([1.0, 0.0, 0.0]))
    cues = measure_cues(leaves, np.array([[False, True, True]]), np.array([0.25]))
    assert cues.isolation.tolist() == [1.0]
    assert cues.contrast.tolist() == [1.0]
    assert cues.coherence.tolist() == [1.0]
    assert cues.lifetime.tolist() == [0.25]
    assert np.allclose(cues.area, 4 / 12)
    # Its perimeter: 2 sides towards leaf 0 and 2 on the image's right side.
    assert cues.compactness.tolist() == [4 * 2 / 4]
    assert cues.freedom.tolist() == [0.5]
    assert cues.outline.tolist() == [0.5]
    assert cues.detail.tolist() == [0.5]


def test_score_is_the_product_of_powers_of_the_cues() -> None:
    leaves = row_of_leaves([8, 4], [[1, 0], [0, 1]], [[4, 4, 2, 0], [0, 0, 0, 2]])
    cues = (
        "isolation", "coherence", "compactness", "freedom", "outline", "detail", "contrast",
    )  # fmt: skip
    config = TreeConfig(**{f"{cue}_weight": 0.0 for cue in cues}, lifetime_weight=2.0, area_weight=3.0)
    members = np.array([[False, True], [False, True]])
    scores = score_regions(leaves, members, np.array([0.5, 0.0]), config)
    # A lifetime of 0 counts as 0.001.
    assert np.allclose(scores, [0.5**2 / 27, 0.001**2 / 27])


def test_regions_that_overlap_better_ones_fall_back() -> None:
    ious = np.float32([[1, 0.5, 0.8, 0], [0.5, 1, 0.2, 0], [0.8, 0.2, 1, 0], [0, 0, 0, 1]])
    scores = np.float32([1.0, 0.9, 0.8, 0.7])
    chosen, final = choose_regions(scores, ious, 0.7, 2.0, 100)
    # Region 2 is a duplicate of 0; region 1 falls to 0.9 / e, behind region 3.
    assert chosen.tolist() == [0, 3, 1]
    assert np.allclose(final, [1.0, 0.7, 0.9 / np.e])
    assert scores.tolist() == np.float32([1.0, 0.9, 0.8, 0.7]).tolist()
    assert choose_regions(scores, ious, 0.7, 2.0, 1)[0].tolist() == [0]
    assert choose_regions(scores, ious, 1.0, 0.0, 100)[0].tolist() == [0, 1, 2, 3]
    assert choose_regions(np.float32([1, 1]), np.eye(2, dtype=np.float32), 0.7, 1.0, 9)[0].tolist() == [0, 1]


def test_relative_scores_are_measured_by_the_ten_best() -> None:
    scores = np.float32([8.0, 2.0])
    assert np.allclose(relative_scores(scores, 1.0), [2.0, 0.5])
    assert np.allclose(relative_scores(scores, 0.5), [4.0, 1.0])
    assert relative_scores(scores, 0.0).tolist() == [8.0, 2.0]
    assert np.allclose(relative_scores(np.float32([1.0] * 10 + [0.1]), 1.0)[-1], 0.1)
    assert len(relative_scores(np.zeros(0, np.float32), 1.0)) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_leaves": 0},
        {"segment_side_px": 0},
        {"max_masks": 0},
        {"border_sides": 5},
        {"duplicate_iou": 1.5},
        {"min_area": -0.1},
        {"size_power": -1.0},
        {"area_weight": float("nan")},
        {"overlap_penalty": -1.0},
        {"relative_power": float("inf")},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        TreeConfig(**wrong)
