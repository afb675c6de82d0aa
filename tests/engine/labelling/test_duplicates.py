import numpy as np
import pytest
import torch

from engine.images.crops import Crop
from engine.images.tiling import TilingConfig
from engine.labelling.duplicates import merge_crops, merge_instances, merge_labels
from engine.labelling.outcomes import Labels
from engine.masks.boxes import mask_boxes_xyxy
from engine.masks.instances import Instances
from engine.masks.rle import decode_rles, encode_rles
from engine.types import Optimality, Reason

CONFIG = TilingConfig(tile=32)
SIZE = (20, 30)
BLACK = np.zeros((8, 8, 3), np.uint8)


def square(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def instances(*scored: tuple[float, np.ndarray]) -> Instances:
    masks = np.stack([mask for _, mask in scored])
    return Instances(
        size=SIZE,
        method="promerge",
        rles=encode_rles(masks),
        boxes_xyxy=mask_boxes_xyxy(masks),
        areas=masks.sum(axis=(1, 2)),
        scores=np.array([score for score, _ in scored], np.float32),
        stabilities=np.full(len(scored), np.nan, np.float32),
    )


OBJECT, SHIFTED, PART, OTHER = (
    square(0, 0, 10, 10),
    square(2, 0, 12, 10),
    square(2, 2, 5, 5),
    square(20, 5, 30, 15),
)


def test_the_view_with_the_higher_score_is_kept() -> None:
    whole, tile = instances((0.5, OBJECT), (0.4, OTHER)), instances((0.6, SHIFTED))
    merged = merge_instances([whole, tile], CONFIG)
    assert np.array_equal(decode_rles(merged.rles, SIZE), [SHIFTED, OTHER])
    assert merged.scores.tolist() == np.array([0.6, 0.4], np.float32).tolist()
    assert merged.areas.tolist() == [100, 100]
    assert merged.boxes_xyxy.tolist() == [[2, 0, 12, 10], [20, 5, 30, 15]]
    apart = merge_instances([whole, tile], TilingConfig(tile=32, duplicate_iou=0.7, duplicate_ioa=0.9))
    assert len(apart) == 3


def test_a_part_is_dropped_for_its_object_but_not_the_object_for_a_part() -> None:
    assert len(merge_instances([instances((0.5, OBJECT)), instances((0.4, PART))], CONFIG)) == 1
    assert len(merge_instances([instances((0.4, OBJECT)), instances((0.5, PART))], CONFIG)) == 2


def test_a_dropped_mask_suppresses_no_other() -> None:
    far = square(4, 0, 14, 10)  # overlaps SHIFTED, which is dropped for OBJECT, but not OBJECT
    merged = merge_instances([instances((0.9, OBJECT)), instances((0.8, SHIFTED), (0.7, far))], CONFIG)
    assert np.array_equal(decode_rles(merged.rles, SIZE), [OBJECT, far])


def test_order_does_not_depend_on_where_masks_come_from() -> None:
    one, other = instances((0.5, OTHER), (0.5, PART)), instances((0.5, square(8, 12, 18, 20)))
    merged, swapped = merge_instances([one, other], CONFIG), merge_instances([other, one], CONFIG)
    assert merged.rles == swapped.rles
    assert merged.areas.tolist() == [100, 80, 9]


def test_labels_of_crops_become_those_of_the_image() -> None:
    found = Labels(instances=instances((0.5, OBJECT)))
    optimality = Optimality(objective=-1, gap=0)
    whole = Labels(reason=Reason.NO_FOREGROUND, optimality=optimality)
    assert merge_labels([found], CONFIG) is found
    assert merge_labels([whole, Labels(reason=Reason.REFINED_AWAY)], CONFIG) is whole
    merged = merge_labels([whole, found], CONFIG)
    assert isinstance(merged, Labels)
    assert merged.instances is not None
    assert merged.instances.rles == instances((0.5, OBJECT)).rles
    assert (merged.reason, merged.optimality) == (None, optimality)


def test_a_crop_that_fails_decides_for_its_image() -> None:
    found, error = Labels(instances=instances((0.5, OBJECT))), RuntimeError("surprise")
    broken = Labels(reason=Reason.NON_FINITE)
    assert merge_labels([found, error, broken], CONFIG) is error
    assert merge_labels([found, broken, error], CONFIG) is broken


def test_crops_are_merged_image_by_image() -> None:
    whole, tile = Crop.whole(BLACK, SIZE), Crop(resized_hwc=BLACK, box_xyxy=(0, 0, 9, 9), size=SIZE)
    found, nothing = Labels(instances=instances((0.5, OBJECT))), Labels(reason=Reason.NO_FOREGROUND)
    error = RuntimeError("surprise")
    first, second, third = merge_crops(
        [(whole, nothing), (tile, nothing), (tile, found), (whole, nothing), (whole, error)], CONFIG
    )
    assert isinstance(first, Labels)
    assert first.instances is not None
    assert (second, third) == (nothing, error)
    assert list(merge_crops([], CONFIG)) == []
    with pytest.raises(torch.OutOfMemoryError):
        list(merge_crops([(whole, found), (tile, torch.OutOfMemoryError())], CONFIG))
