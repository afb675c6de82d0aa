"""Pictures of masks on photographs."""

import numpy as np

from engine.masks.instances import Instances
from engine.masks.packing import make_instances
from engine.report.drawing import draw_instances, select_shown

SIZE = (10, 40)


def boxes(*columns: tuple[int, int]) -> Instances:
    """Instances that fill columns of an image of 10 x 40 pixels, best first."""
    masks = np.zeros((len(columns), *SIZE), bool)
    for mask, (left, right) in zip(masks, columns, strict=True):
        mask[:, left:right] = True
    scores = np.linspace(1, 0.1, len(columns), dtype=np.float32)
    return make_instances(masks, scores, SIZE, "tree")


def test_masks_within_others_and_around_them_are_not_shown() -> None:
    nested = boxes((0, 10), (0, 4), (0, 30), (8, 18))
    shown = select_shown(nested)
    assert shown.boxes_xyxy[:, [0, 2]].tolist() == [[0, 10], [8, 18]]


def test_at_most_ten_masks_are_shown() -> None:
    assert len(select_shown(boxes(*((i, i + 1) for i in range(20))))) == 10
    assert len(select_shown(boxes())) == 0


def test_the_best_mask_is_on_top_and_images_without_masks_stay() -> None:
    grey = np.full((*SIZE, 3), 100, np.uint8)
    both, best = draw_instances(grey, boxes((0, 20), (10, 40))), draw_instances(grey, boxes((0, 20)))
    assert (both[5, 5] == best[5, 5]).all()
    assert (both[5, 30] != 100).any()
    assert np.array_equal(draw_instances(grey, None), grey)
