"""Masks packed as instances: the same as resizing and encoding with Pillow and pycocotools."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from engine.masks.boxes import mask_boxes_xyxy
from engine.masks.components import resize_masks
from engine.masks.packing import make_instances
from engine.masks.rle import encode_rles

masks = arrays(bool, st.tuples(st.just(1), st.integers(1, 7), st.integers(1, 9)))
sides = st.tuples(st.integers(1, 24), st.integers(1, 24))


@settings(deadline=None)  # the first call compiles
@given(masks, sides, sides, sides)
def test_a_mask_within_a_box_of_its_image(
    mask: np.ndarray, part: tuple[int, int], before: tuple[int, int], after: tuple[int, int]
) -> None:
    (height, width), (y0, x0) = part, before
    size = (y0 + height + after[0], x0 + width + after[1])
    expected = np.zeros((1, *size), bool)
    expected[:, y0 : y0 + height, x0 : x0 + width] = resize_masks(mask, part)
    made = make_instances(mask, np.float32([0.5]), size, "tree", (x0, y0, x0 + width, y0 + height))
    assert len(made) == int(expected.any())
    assert made.areas.tolist() == expected.sum(axis=(1, 2))[: len(made)].tolist()
    assert made.rles == encode_rles(expected)[: len(made)]
    assert np.array_equal(made.boxes_xyxy, mask_boxes_xyxy(expected)[: len(made)])


@settings(deadline=None)
@given(masks, sides)
def test_a_mask_of_a_whole_image(mask: np.ndarray, size: tuple[int, int]) -> None:
    made = make_instances(mask, np.float32([0.5]), size, "tree")
    expected = resize_masks(mask, size)
    assert made.rles == encode_rles(expected)[: int(expected.any())]


def test_ties_are_broken_by_area_and_first_pixel() -> None:
    stack = np.zeros((4, 2, 6), bool)
    stack[0, 1, 0], stack[1, 0, 4], stack[2, 0, :2], stack[3, 0, 5] = True, True, True, True
    made = make_instances(stack, np.float32([0.5, 0.5, 0.5, 0.9]), (2, 6), "tree")
    assert made.boxes_xyxy.tolist() == [[5, 0, 6, 1], [0, 0, 2, 1], [4, 0, 5, 1], [0, 1, 1, 2]]


def test_scores_and_masks_go_together() -> None:
    with pytest.raises(ValueError, match="argument 2 is"):
        make_instances(np.ones((2, 3, 3), bool), np.float32([1]), (3, 3), "tree")
