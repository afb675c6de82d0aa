from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigurationError
from engine.images.crops import PreparationConfig, cut_crops
from engine.images.resizing import resize_image
from engine.images.tiling import TilingConfig, tile_boxes, touches_tile_edge

sides = st.integers(1, 400)


@given(sides, sides, st.integers(32, 300), st.floats(0, 0.8))
def test_tiles_cover_the_image_and_overlap(height: int, width: int, tile: int, overlap: float) -> None:
    config = TilingConfig(tile=tile, overlap=overlap)
    boxes = tile_boxes((height, width), config)
    if max(height, width) <= tile:
        assert boxes == []
        return
    assert {(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes} == {(min(tile, width), min(tile, height))}
    assert len(set(boxes)) == len(boxes)
    for axis, length in ((0, width), (1, height)):
        spans = sorted({(box[axis], box[axis + 2]) for box in boxes})
        assert (spans[0][0], spans[-1][1]) == (0, length)
        for (_, stop), (start, _) in pairwise(spans):
            assert stop - start >= overlap * tile - 1  # positions are whole pixels


def test_no_more_tiles_than_needed() -> None:
    assert len(tile_boxes((800, 800), TilingConfig(tile=400, overlap=0.25))) == 9
    assert len(tile_boxes((800, 800), TilingConfig(tile=400, overlap=0.0))) == 4
    assert len(tile_boxes((1000, 100), TilingConfig(tile=100, overlap=0.1))) == 11
    assert tile_boxes((800, 800), TilingConfig()) == []


def test_crops_are_the_whole_and_its_tiles() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    crops = list(cut_crops(image, PreparationConfig(image_size=(16, 24), tiling=TilingConfig(tile=32))))
    assert [crop.is_whole for crop in crops] == [True] + [False] * (len(crops) - 1)
    assert [crop.box_xyxy for crop in crops[1:]] == tile_boxes((40, 64), TilingConfig(tile=32))
    x0, y0, x1, y1 = crops[-1].box_xyxy
    assert (x1, y1) == (64, 40)
    assert np.array_equal(crops[0].resized_hwc, resize_image(image, (16, 24)))
    assert np.array_equal(crops[-1].resized_hwc, resize_image(image[y0:y1, x0:x1].copy(), (16, 24)))


@pytest.mark.parametrize(
    ("box", "cut"),
    [
        ((0, 0, 10, 10), [False, True, False, True]),
        ((10, 5, 20, 15), [True, True, True, True]),
        ((20, 10, 30, 20), [True, False, True, False]),
        ((0, 0, 30, 20), [False, False, False, False]),
    ],
)
def test_only_inner_edges_truncate_masks(box: tuple[int, int, int, int], cut: list[bool]) -> None:
    masks = np.zeros((5, 4, 4), bool)
    masks[0, 0, 1] = masks[1, -1, 1] = masks[2, 1, 0] = masks[3, 1, -1] = True  # top, bottom, left, right
    masks[4, 1:3, 1:3] = True
    assert touches_tile_edge(masks, box, (20, 30)).tolist() == [*cut, False]
    assert touches_tile_edge(masks[:0], box, (20, 30)).tolist() == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile": 8}, "tile is .* >= 32"),
        ({"overlap": 1.0}, "overlap"),
        ({"duplicate_ioa": 0}, "duplicate_ioa"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TilingConfig(**settings)
