import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from scipy import ndimage

from engine.export.polygons import coco_polygons, trace_rings, yolo_polygon

with warnings.catch_warnings():
    # It warns that OpenCV is missing.
    warnings.simplefilter("ignore", UserWarning)
    import supervision

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9))


def parse(*rows: str) -> NDArray[np.bool_]:
    return np.array([[cell == "#" for cell in row] for row in rows])


RING = parse("####", "#..#", "#.##", "####")
SHAPES = {
    "dot": parse("...", ".#.", "...", "..."),
    "full": parse("###", "###"),
    "row": parse(".....", ".###.", "....."),
    "corner": parse("#..", "##.", "###", "###"),
    "concave": parse("#.#", "#.#", "###", "..."),
    "ring": RING,
    "diagonal": parse("#..", ".#.", "..#", "..."),
    "two": parse("##...", "##...", ".....", "...##"),
    "dot in a ring": np.pad(parse("#####", "#...#", "#.#.#", "#...#", "#####"), 1),
}


def read_as_coco(polygons: list[NDArray[np.int64]], size: tuple[int, int]) -> NDArray[np.bool_]:
    rles = coco_mask.frPyObjects([polygon.ravel().astype(float).tolist() for polygon in polygons], *size)
    return coco_mask.decode(coco_mask.merge(rles)).astype(bool)


def read_as_yolo(polygon: NDArray[np.float64], size: tuple[int, int], rounds: bool) -> NDArray[np.bool_]:
    """The mask as supervision reads it (rounding to the nearest) or as ultralytics does (rounding down)."""
    written = np.array([float(f"{value:.6f}") for value in polygon.ravel()], np.float32).reshape(-1, 2)
    pixels = written * [size[1], size[0]]
    pixels = np.round(pixels) if rounds else np.floor(pixels)
    return supervision.polygon_to_mask(pixels.astype(np.int32), size[::-1]).astype(bool)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_coco_polygons_decode_to_the_mask(name: str, transposed: bool) -> None:
    mask = SHAPES[name].T if transposed else SHAPES[name]
    assert np.array_equal(read_as_coco(coco_polygons(mask), mask.shape), mask)


@settings(deadline=None)
@given(MASKS)
def test_coco_polygons_decode_to_any_mask(mask: NDArray[np.bool_]) -> None:
    polygons = coco_polygons(mask)
    assert len(polygons) == ndimage.label(mask)[1]
    if polygons:
        assert np.array_equal(read_as_coco(polygons, mask.shape), mask)


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_yolo_polygons_decode_to_the_mask(name: str, transposed: bool, rounds: bool) -> None:
    mask = SHAPES[name].T if transposed else SHAPES[name]
    read = read_as_yolo(yolo_polygon(mask), mask.shape, rounds)
    assert read[mask].all()
    # A bridge to another component adds a line of pixels; all other pixels are exact.
    bridges = {"two": 2, "dot in a ring": 1}.get(name, 0)
    assert (read & ~mask).sum() <= bridges


@settings(deadline=None)
@given(MASKS, st.booleans())
def test_yolo_polygons_decode_to_any_single_component(mask: NDArray[np.bool_], rounds: bool) -> None:
    labels, count = ndimage.label(mask)
    for number in range(1, count + 1):
        one = ndimage.binary_fill_holes(labels == number)
        polygon = yolo_polygon(one)
        assert len(polygon) >= 3
        assert ((polygon > 0) & (polygon < 1)).all()
        assert np.array_equal(read_as_yolo(polygon, one.shape, rounds), one)


def test_rings_have_their_component_and_whether_they_are_holes() -> None:
    rings = trace_rings(SHAPES["dot in a ring"])
    assert [(ring.component, ring.is_hole) for ring in rings] == [(1, False), (2, False), (1, True)]
    assert rings[1].corners_xy.tolist() == [[3, 3], [4, 3], [4, 4], [3, 4]]
    assert rings[1].pixels_xy.tolist() == [[3, 3]]


def test_an_empty_mask_has_no_rings() -> None:
    empty = np.zeros((2, 3), bool)
    assert trace_rings(empty) == []
    assert coco_polygons(empty) == []
    assert yolo_polygon(empty).shape == (0, 2)
