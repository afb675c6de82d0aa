import numpy as np

from engine.images.tiling import TilingConfig
from engine.labelling.duplicates import merge_instances, merge_outcomes, merge_results
from engine.masks.boxes import mask_boxes_xyxy
from engine.masks.instances import Instances
from engine.masks.rle import decode_rles, encode_rles
from engine.types import ImageRecord, Outcome, Reason, Status

CONFIG = TilingConfig(tile=32)
SIZE = (20, 30)
RECORD = ImageRecord(image_id="a", path="a")


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


def test_of_two_views_the_higher_score_stays() -> None:
    whole, tile = instances((0.5, OBJECT), (0.4, OTHER)), instances((0.6, SHIFTED))
    merged = merge_instances([whole, tile], CONFIG)
    assert np.array_equal(decode_rles(merged.rles, SIZE), [SHIFTED, OTHER])
    assert merged.scores.tolist() == np.array([0.6, 0.4], np.float32).tolist()
    assert merged.areas.tolist() == [100, 100]
    assert merged.boxes_xyxy.tolist() == [[2, 0, 12, 10], [20, 5, 30, 15]]
    apart = merge_instances([whole, tile], TilingConfig(tile=32, duplicate_iou=0.7, duplicate_ioa=0.9))
    assert len(apart) == 3


def test_a_part_goes_for_its_object_but_no_object_for_a_part() -> None:
    assert len(merge_instances([instances((0.5, OBJECT)), instances((0.4, PART))], CONFIG)) == 1
    assert len(merge_instances([instances((0.4, OBJECT)), instances((0.5, PART))], CONFIG)) == 2


def test_what_went_takes_nothing_along() -> None:
    far = square(4, 0, 14, 10)  # like SHIFTED, which goes for OBJECT, but unlike OBJECT
    merged = merge_instances([instances((0.9, OBJECT)), instances((0.8, SHIFTED), (0.7, far))], CONFIG)
    assert np.array_equal(decode_rles(merged.rles, SIZE), [OBJECT, far])


def test_order_does_not_depend_on_where_masks_come_from() -> None:
    one, other = instances((0.5, OTHER), (0.5, PART)), instances((0.5, square(8, 12, 18, 20)))
    merged, swapped = merge_instances([one, other], CONFIG), merge_instances([other, one], CONFIG)
    assert merged.rles == swapped.rles
    assert merged.areas.tolist() == [100, 80, 9]


def test_crops_without_objects() -> None:
    found = instances((0.5, OBJECT))
    assert merge_results([found], CONFIG) is found
    assert merge_results([Reason.NO_FOREGROUND, Reason.REFINED_AWAY], CONFIG) == Reason.NO_FOREGROUND
    assert merge_results([found, Reason.NON_FINITE], CONFIG) == Reason.NON_FINITE
    merged = merge_results([Reason.NO_FOREGROUND, found], CONFIG)
    assert isinstance(merged, Instances)
    assert merged.rles == found.rles


def test_rows_of_crops_become_one_row() -> None:
    whole = Outcome(record=RECORD, status=Status.NO_OBJECT, height=20, width=30, reason=Reason.NO_FOREGROUND)
    tile = Outcome(
        record=RECORD, status=Status.LABELLED, height=20, width=30, instances=instances((0.5, OBJECT))
    )
    broken = Outcome(record=RECORD, status=Status.REJECTED, reason=Reason.FAILED)
    merged = merge_outcomes([whole, tile], CONFIG)
    assert (merged.status, merged.reason, merged.height) == (Status.LABELLED, None, 20)
    assert merge_outcomes([whole, whole], CONFIG) is whole
    assert merge_outcomes([whole, tile, broken], CONFIG) is broken
