import json
from pathlib import Path

import numpy as np
import pytest

from engine.errors import CorpusError
from engine.ground_truth import read_coco_folder

SQUARE = np.zeros((4, 6), bool)
SQUARE[1:3, 2:5] = True
# The same square as polygon, as counts column by column, and as compressed counts.
POLYGON = [[2, 1, 5, 1, 5, 3, 2, 3]]
COUNTS = {"size": [4, 6], "counts": [9, 2, 2, 2, 2, 2, 5]}


def test_every_way_to_write_a_mask_gives_the_mask(tmp_path: Path) -> None:
    annotations = [
        {"image_id": 9, "segmentation": POLYGON},
        {"image_id": 9, "segmentation": COUNTS, "iscrowd": 0},
        {"image_id": 9, "segmentation": COUNTS, "iscrowd": 1},
        {"image_id": 3, "segmentation": COUNTS},
    ]
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 4, "width": 6} for i in (9, 3, 5)]
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations/instances_val.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    first, second = read_coco_folder(tmp_path)
    assert (first.coco_id, first.path, len(first.rles)) == (3, tmp_path / "val/3.jpg", 1)
    assert np.array_equal(second.masks(), [SQUARE, SQUARE])
    annotations[0]["segmentation"] = {"size": [4, 6], "counts": first.rles[0].decode()}
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    assert np.array_equal(list(read_coco_folder(tmp_path))[1].masks(), [SQUARE, SQUARE])


def test_a_folder_without_annotations_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="instances_"):
        next(read_coco_folder(tmp_path))
