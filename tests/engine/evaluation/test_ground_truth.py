import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import CorpusError
from engine.evaluation.ground_truth import AnnotatedImage, read_ground_truth
from engine.masks.rle import encode_rles

SQUARE = np.zeros((4, 6), bool)
SQUARE[1:3, 2:5] = True
# The same square as a polygon, as column-major run lengths, and as compressed run lengths.
POLYGON = [[2, 1, 5, 1, 5, 3, 2, 3]]
COUNTS = {"size": [4, 6], "counts": [9, 2, 2, 2, 2, 2, 5]}
COMPRESSED = {"size": [4, 6], "counts": encode_rles(SQUARE[None])[0].decode()}


def coco(annotations: list[dict[str, Any]]) -> str:
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 4, "width": 6} for i in (9, 3, 5)]
    return json.dumps({"images": images, "annotations": annotations})


def annotated(segmentation: Any, **fields: Any) -> str:
    return coco([{"image_id": 3, "segmentation": segmentation, **fields}])


def run_lengths(counts: Any) -> str:
    return annotated({"size": [4, 6], "counts": counts})


def sa1b(number: int, segmentation: Any = COMPRESSED) -> str:
    image = {"image_id": number, "file_name": f"sa_{number}.jpg", "height": 4, "width": 6}
    annotation = {"id": 1, "segmentation": segmentation, "bbox": [2, 1, 3, 2], "area": 6}
    return json.dumps({"image": image, "annotations": [annotation]})


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path) -> list[AnnotatedImage]:
    return list(read_ground_truth(str(path)))


def test_all_mask_encodings_decode_to_the_same_mask(tmp_path: Path) -> None:
    annotations = [
        {"image_id": 9, "segmentation": POLYGON},
        {"image_id": 9, "segmentation": COUNTS, "iscrowd": 0},
        {"image_id": 9, "segmentation": COMPRESSED, "bbox": None, "area": None},
        {"image_id": 9, "segmentation": COUNTS, "iscrowd": 1, "bbox": [2.5, 1, 1.25, 2], "area": 5.5},
        {"image_id": "3", "segmentation": COUNTS},
        {"image_id": 77, "segmentation": "of an unlisted image"},
    ]
    first, empty, last = read(write(tmp_path / "any_name.json", coco(annotations)))
    assert [(image.coco_id, image.path, image.size) for image in (first, empty, last)] == [
        (3, "3.jpg", (4, 6)),
        (5, "5.jpg", (4, 6)),
        (9, "9.jpg", (4, 6)),
    ]
    assert np.array_equal(last.masks(), [SQUARE] * 3)
    assert last.boxes_xywh.tolist() == [[2, 1, 3, 2]] * 3 + [[2.5, 1, 1.25, 2]]
    assert last.areas.tolist() == [6, 6, 6, 5.5]
    assert last.is_crowd.tolist() == [False] * 3 + [True]
    assert (len(last.rles), last.num_objects, first.num_objects, empty.num_objects) == (4, 3, 1, 0)
    assert empty.masks().shape == (0, 4, 6)
    assert empty.boxes_xywh.shape == (0, 4)


@pytest.mark.parametrize(
    ("file", "first_path"), [("instances_val2017.json", "val2017/3.jpg"), ("test2017.json", "3.jpg")]
)
def test_folders_of_coco_and_hrsid(file: str, first_path: str, tmp_path: Path) -> None:
    write(tmp_path / "annotations" / file, coco([]))
    if file.startswith("instances"):
        write(tmp_path / "annotations/captions_val2017.json", "{}")
    assert read(tmp_path)[0].path == first_path
    write(tmp_path / "annotations" / file.replace("2017", "2014"), coco([]))
    with pytest.raises(CorpusError, match="several annotation files"):
        read(tmp_path)


def test_folders_and_tars_of_sa1b(tmp_path: Path) -> None:
    write(tmp_path / "sa_1.json", sa1b(1))
    write(tmp_path / "sa_1.jpg", b"")
    write(tmp_path / "more/sa_2.json", sa1b(2))
    with tarfile.open(tmp_path / "sa_000020.tar", "w") as archive:
        for name, data in [("./sa_3.jpg", b"no json"), ("./sa_3.json", sa1b(3).encode())]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    images = read(tmp_path)
    assert [(image.coco_id, image.path) for image in images] == [
        (2, "more/sa_2.jpg"),
        (3, "sa_3.jpg"),
        (1, "sa_1.jpg"),
    ]
    assert all(np.array_equal(image.masks(), [SQUARE]) for image in images)
    assert read(tmp_path / "sa_000020.tar")[0].path == "sa_3.jpg"
    assert read(tmp_path / "sa_1.json")[0].coco_id == 1
    write(tmp_path / "sa_000021.tar", b"not a tar")
    with pytest.raises(CorpusError, match=r"sa_000021\.tar"):
        read(tmp_path)
    with pytest.raises(CorpusError, match="unpack its JSON"):
        list(read_ground_truth("s3://bucket/sa_000020.tar"))


def test_id_masks(tmp_path: Path, encode_image: Callable[..., bytes]) -> None:
    ids = np.zeros((4, 6), np.uint16)
    ids[1:3, 2:5] = 700
    ids[0, 0] = 3
    write(tmp_path / "masks/b/Ped2_mask.png", encode_image(ids, "PNG"))
    write(tmp_path / "masks/a.png", encode_image(np.zeros((4, 6), np.uint8), "PNG"))
    write(tmp_path / "images/a.png", encode_image(np.zeros((4, 6, 3), np.uint8), "PNG"))
    empty, image = read(tmp_path)
    assert [(i.path, i.coco_id) for i in (empty, image)] == [("a.png", None), ("b/Ped2.png", None)]
    assert (empty.mask_folder, image.mask_folder) == ("masks", "b")
    assert np.array_equal(image.masks(), [ids == 3, SQUARE])
    assert image.boxes_xywh.tolist() == [[0, 0, 1, 1], [2, 1, 3, 2]]
    assert image.areas.tolist() == [1, 6]
    assert (empty.num_objects, empty.size) == (0, (4, 6))
    assert [i.path for i in read(tmp_path / "masks")] == ["a.png", "b/Ped2.png"]
    with pytest.raises(CorpusError, match="one"):
        read(tmp_path / "images")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a ground truth"),
        ('{"images": [], "annotations": [{}]}', "no 'image_id'"),
        ('{"images": [{"id": "x"}], "annotations": []}', "invalid literal"),
        ('{"images": [{"id": 3}], "annotations": []}', "image 3, annotation 0: no 'height'"),
        (coco([{"image_id": 3}]), "image 3, annotation 0: no 'segmentation'"),
        (
            coco([{"image_id": 3, "segmentation": POLYGON}, {"image_id": 3, "segmentation": []}]),
            "three points",
        ),
        (coco([{"image_id": 3, "segmentation": [[1, 2, 3, 4]]}]), "three points"),
        (coco([{"image_id": 3, "segmentation": {"size": [6, 4], "counts": "0"}}]), r"size \[6, 4\]"),
        (coco([{"image_id": 3, "segmentation": {"size": [4, 6], "counts": [5]}}]), "add up"),
        (
            annotated(POLYGON, bbox=[1, 2]),
            "image 3, annotation 0: bbox must be four finite numbers and area one",
        ),
        (annotated(POLYGON, area=float("nan")), "bbox must be"),
        (annotated([[2, 1, 5, float("nan"), 5, 3]]), "coordinates of polygons are numbers of pixels"),
        (annotated([[2, 1, 5, float("inf"), 5, 3]]), "coordinates"),
        (annotated([[2, 1, 5, 1e9, 5, 3]]), "coordinates"),
        (annotated([[2, 1, 5, "1", 5, 3]]), "annotation 0"),
        (run_lengths([0.5, 23.5]), "whole numbers, 0 or more"),
        (run_lengths([-5, 29]), "whole numbers, 0 or more"),
        (run_lengths([10**30]), "annotation 0"),
        (run_lengths(7), "counts are a list or a string, got 7"),
        (run_lengths(""), "no compressed run lengths"),
        (run_lengths("garbage!"), "no compressed run lengths"),
        (run_lengths("ooooooooooooooo"), "no compressed run lengths"),
        (run_lengths("ooooooooooooooo0"), "a number is too long"),
        (run_lengths("5"), "add up to 5 pixels, the image has 24"),
        (run_lengths("5O"), "a run length is negative: -1"),
        (run_lengths("é"), "annotation 0"),
        (coco([{"image_id": 77, "segmentation": POLYGON}]), "no annotation refers to a listed image"),
        ('{"images": [{"id": 3, "height": 0, "width": 6, "file_name": ""}], "annotations": []}', "at least"),
        (sa1b(3, 5), "image 3, annotation 0"),
    ],
)
def test_malformed_json_gives_a_one_line_error(content: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "truth.json", content)
    with pytest.raises(CorpusError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_ground_truth(tmp_path: Path) -> None:
    for name in ("nowhere", "nowhere.json", ""):
        with pytest.raises(CorpusError, match="no ground truth"):
            read(tmp_path / name)
    with pytest.raises(CorpusError, match="not a PNG"):
        read(write(tmp_path / "masks/a.png", b"x").parent)
