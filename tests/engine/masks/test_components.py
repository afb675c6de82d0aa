import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from engine.masks.boxes import mask_boxes_xyxy, xyxy_to_xywh
from engine.masks.components import (
    fill_holes,
    keep_large_components,
    label_components,
    paired_ious,
    resize_masks,
)
from engine.masks.rle import decode_rles, encode_rles, overlaps

stacks = arrays(bool, st.tuples(st.integers(0, 3), st.integers(1, 7), st.integers(1, 9)))


@given(stacks)
def test_run_lengths_decode_to_the_masks(masks: np.ndarray) -> None:
    assert np.array_equal(decode_rles(encode_rles(masks), masks.shape[1:]), masks)


def test_overlaps_of_run_lengths() -> None:
    masks = np.array([[[1, 1, 1, 1, 0]], [[0, 0, 1, 1, 1]], [[0, 0, 1, 0, 0]]], bool)
    ious, ioas = overlaps(encode_rles(masks), (1, 5))
    assert np.allclose(ious, [[1, 2 / 5, 1 / 4], [2 / 5, 1, 1 / 3], [1 / 4, 1 / 3, 1]])
    assert np.allclose(ioas, [[1, 2 / 4, 1 / 4], [2 / 3, 1, 1 / 3], [1, 1, 1]])
    assert overlaps((), (1, 5))[0].shape == (0, 0)


def test_run_lengths_are_in_cocos_format() -> None:
    # Column by column: 1 zero, 2 ones, 3 zeros; each count c is the character chr(48 + c) below 16.
    assert encode_rles(np.array([[[0, 1, 0], [1, 0, 0]]], bool)) == (b"123",)


@given(stacks)
def test_components_are_numbered_by_mask_and_first_pixel(masks: np.ndarray) -> None:
    labels, count = label_components(masks)
    assert np.array_equal(labels > 0, masks)
    first_seen = list(dict.fromkeys(labels[labels > 0].tolist()))
    assert first_seen == list(range(1, count + 1))


def test_components_are_connected_by_sides_not_corners() -> None:
    labels, count = label_components(np.array([[[1, 0], [0, 1]]], bool))
    assert (labels.tolist(), count) == ([[[1, 0], [0, 2]]], 2)


def test_small_components_are_dropped() -> None:
    masks = np.array([[[1, 1, 0, 1], [1, 1, 0, 1]], [[0, 0, 0, 0], [0, 0, 0, 0]]], bool)
    assert keep_large_components(masks, 0.5).tolist() == masks.tolist()
    assert keep_large_components(masks, 0.51)[0].astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]


def test_holes_are_filled_but_bays_are_not() -> None:
    masks = np.array([[[1, 1, 1], [1, 0, 1], [1, 1, 1]], [[1, 1, 1], [1, 0, 1], [1, 0, 1]]], bool)
    filled = fill_holes(masks)
    assert filled[0].all()
    assert np.array_equal(filled[1], masks[1])
    assert fill_holes(np.zeros((0, 2, 3), bool)).shape == (0, 2, 3)


@given(stacks)
def test_the_same_holes_are_filled_as_by_scipy(masks: np.ndarray) -> None:
    expected = [ndimage.binary_fill_holes(mask) for mask in masks]
    assert np.array_equal(fill_holes(masks), np.array(expected, bool).reshape(masks.shape))


def test_ious_of_paired_masks() -> None:
    first = np.array([[[1, 1, 0]], [[0, 0, 0]], [[1, 0, 0]]], bool)
    second = np.array([[[0, 1, 1]], [[0, 0, 0]], [[0, 0, 0]]], bool)
    assert paired_ious(first, second).tolist() == pytest.approx([1 / 3, 1, 0])


def test_boxes_are_tight_and_half_open() -> None:
    masks = np.zeros((3, 4, 6), bool)
    masks[0, 1:3, 2:6] = True
    masks[1, 3, 0] = True
    assert mask_boxes_xyxy(masks).tolist() == [[2, 1, 6, 3], [0, 3, 1, 4], [0, 0, 0, 0]]
    assert xyxy_to_xywh(mask_boxes_xyxy(masks)).tolist() == [[2, 1, 4, 2], [0, 3, 1, 1], [0, 0, 0, 0]]
    assert mask_boxes_xyxy(np.zeros((0, 4, 6), bool)).shape == (0, 4)


def test_resizing_repeats_or_samples_pixels() -> None:
    masks = np.array([[[1, 0, 0], [0, 0, 1]]], bool)
    doubled = resize_masks(masks, (4, 6))
    assert np.array_equal(doubled, masks.repeat(2, axis=1).repeat(2, axis=2))
    assert np.array_equal(resize_masks(doubled, (2, 3)), masks)
    assert resize_masks(masks[:0], (5, 7)).shape == (0, 5, 7)
