from dataclasses import replace

import numpy as np
import pytest

from engine.errors import ConfigurationError
from engine.solo.config import DetectionConfig, GridConfig, SoloConfig
from engine.solo.targets import assign_cells

NEVER = (1000.0, 2000.0)
ONE_LEVEL = GridConfig(grids=(4, 1, 1, 1, 1), ranges_px=((0, 100), NEVER, NEVER, NEVER, NEVER))


def box_masks(*boxes_xyxy, size=(40, 80)):
    masks = np.zeros((len(boxes_xyxy), *size), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes_xyxy, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def test_centre_region_worked_by_hand():
    # A cell is 20 x 10 pixels. Centre (42, 10), region 38..46 x 9..11: columns 1 and 2, rows 0 and 1.
    targets = assign_cells(box_masks((22, 5, 62, 15)), ONE_LEVEL)
    assert targets.indices.tolist() == [1, 2, 5, 6]
    assert targets.instance_of_cell.tolist() == [0, 0, 0, 0]
    assert np.flatnonzero(targets.objectness).tolist() == [1, 2, 5, 6]
    assert targets.objectness.shape == (16 + 4,)


def test_a_contested_cell_goes_to_the_smaller_object():
    targets = assign_cells(box_masks((24, 12, 36, 18), (22, 11, 38, 19)), ONE_LEVEL)
    assert targets.indices.tolist() == [5]
    assert targets.instance_of_cell.tolist() == [0]


def test_objects_are_assigned_to_the_levels_of_their_size():
    grid = GridConfig(grids=(4, 2, 1, 1, 1), ranges_px=((0, 20), (10, 40), NEVER, NEVER, NEVER))
    small, both = box_masks((1, 1, 5, 5))[0], box_masks((1, 1, 17, 17))[0]
    assert assign_cells(small[None], grid).indices.tolist() == [0]
    assert {0, 16} <= set(assign_cells(both[None], grid).indices.tolist())


def test_every_object_gets_a_cell_before_any_gets_its_second():
    masks = box_masks((0, 0, 40, 40), (50, 22, 56, 28))
    wide = replace(ONE_LEVEL, centre=1.0)
    assert len(assign_cells(masks, wide).indices) == 9
    few = assign_cells(masks, replace(wide, max_cells_per_image=2))
    assert sorted(few.instance_of_cell.tolist()) == [0, 1]
    assert few.objectness.sum() == 9


def test_no_masks_one_pixel_and_an_empty_mask():
    assert len(assign_cells(np.zeros((0, 40, 80), bool), ONE_LEVEL).indices) == 0
    masks = np.concatenate([np.zeros((1, 40, 80), bool), box_masks((79, 39, 80, 40))])
    targets = assign_cells(masks, ONE_LEVEL)
    assert (targets.indices.tolist(), targets.instance_of_cell.tolist()) == ([15], [1])


def test_published_and_small_presets():
    assert GridConfig().sizes == (40, 36, 24, 16, 12)
    assert GridConfig().size_ranges_px[4] == (384, 2048)
    assert GridConfig(objects="small").size_ranges_px[0] == (1, 24)
    # A ship of 10 x 30 pixels is assigned to the small preset's levels.
    ship = box_masks((400, 400, 430, 410), size=(800, 800))
    assert len(assign_cells(ship, GridConfig(objects="small")).indices) >= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GridConfig(grids=(4, 2)), "takes 5 values"),
        (lambda: GridConfig(grids=(4, 2, 1, 1, 0)), "grids is a whole number >= 1"),
        (lambda: GridConfig(ranges_px=((-1, 3), *[NEVER] * 4)), "ranges_px is a number >= 0"),
        (lambda: GridConfig(ranges_px=((9, 3), *[NEVER] * 4)), "ranges_px are pairs of rising sizes"),
        (lambda: GridConfig(centre=0), "centre is a share > 0 and <= 1"),
        (lambda: GridConfig(max_cells_per_image=0), "max_cells_per_image is a whole number >= 1"),
        (lambda: DetectionConfig(min_score=1.0), "min_score is a probability >= 0 and < 1"),
        (lambda: DetectionConfig(nms_sigma=0), "nms_sigma is a number > 0"),
        (lambda: DetectionConfig(max_instances=600), "max_instances is at most max_before_nms"),
        (lambda: SoloConfig(image_size=100), "image_size is a multiple of 32"),
        (lambda: SoloConfig(backbone=""), "backbone and backbone_weights must not be empty"),
        (lambda: SoloConfig(head_depth=0), "head_depth is a whole number >= 1"),
        (lambda: SoloConfig(seed=-1), "seed is a whole number >= 0"),
    ],
)
def test_settings_out_of_range_name_the_field(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
