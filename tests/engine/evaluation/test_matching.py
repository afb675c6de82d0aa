import re

import numpy as np
import pytest

from engine.errors import CorpusError
from engine.evaluation.ground_truth import AnnotatedImage
from engine.evaluation.matching import match_images
from engine.types import ImageRecord


def truth(path: str, coco_id: int | None = None, mask_folder: str | None = None) -> AnnotatedImage:
    return AnnotatedImage(
        coco_id=coco_id,
        path=path,
        size=(4, 6),
        rles=(),
        boxes_xywh=np.zeros((0, 4)),
        areas=np.zeros(0),
        is_crowd=np.zeros(0, bool),
        mask_folder=mask_folder,
    )


def matched(images: list[tuple[str, int | None]], truths: list[AnnotatedImage]) -> list[tuple[str, str]]:
    records = [ImageRecord(image_id=path, path=path, coco_id=coco_id) for path, coco_id in images]
    return [(m.truth.path, m.item) for m in match_images([(r, r.path) for r in records], truths)]


def test_ids_match_if_no_path_agrees() -> None:
    images = [("x/000000000007.jpg", 7), ("COCO_val2014_000000000009.jpg", 9), ("a.jpg", None)]
    truths = [truth("000000000009.jpg", 9), truth("val2017/other.jpg", 7), truth("a.jpg", 3)]
    assert matched(images, truths) == [
        ("000000000009.jpg", "COCO_val2014_000000000009.jpg"),
        ("val2017/other.jpg", "x/000000000007.jpg"),
        ("a.jpg", "a.jpg"),
    ]


def test_paths_outrank_contradicting_ids() -> None:
    images: list[tuple[str, int | None]] = [(f"{number}.jpg", number) for number in range(1, 6)]
    renumbered = [truth(f"val/{number}.jpg", 6 - number) for number in range(1, 6)]
    assert matched(images, renumbered) == [(f"val/{number}.jpg", f"{number}.jpg") for number in range(1, 6)]
    # This ground truth lacks 1.jpg and gives its id to 5.jpg, which is not among the images.
    assert matched(images[:4], renumbered[1:]) == [(f"val/{i}.jpg", f"{i}.jpg") for i in (2, 3, 4)]


def test_ids_tell_equal_names_apart() -> None:
    images: list[tuple[str, int | None]] = [("a.jpg", 7), ("x/b.jpg", 8)]
    truths = [truth("train/a.jpg", 6), truth("val/a.jpg", 7), truth("y/b.jpg", 8)]
    assert matched(images, truths) == [("val/a.jpg", "a.jpg"), ("y/b.jpg", "x/b.jpg")]


@pytest.mark.parametrize(
    ("image", "annotated"),
    [
        ("val/a.jpg", "val/a.jpg"),
        ("a.jpg", "val/a.jpg"),
        ("coco/val/a.jpg", "val/a.jpg"),
        ("images/a.b.jpg", "a.b.png"),
        ("sa_000001.tar/sa_5.jpg", "sa_5.jpg"),
    ],
)
def test_paths_agree_if_one_ends_in_the_other(image: str, annotated: str) -> None:
    assert matched([(image, None)], [truth(annotated), truth("train/b.jpg")]) == [(annotated, image)]


def test_the_closest_path_matches() -> None:
    images = [("thumbnails/a.jpg", None), ("a.jpg", None), ("a.png", None)]
    assert matched(images, [truth("a.jpg")]) == [("a.jpg", "a.jpg")]
    assert matched(images[::-1], [truth("a.jpg")]) == [("a.jpg", "a.jpg")]
    assert matched([("val/a.jpg", None)], [truth("a.png"), truth("a.jpg")]) == [("a.jpg", "val/a.jpg")]


def test_an_id_mask_does_not_match_itself() -> None:
    mask = truth("a.png", mask_folder="masks")
    images = [("images/a.jpg", None), ("masks/a.png", None)]
    assert matched(images, [mask]) == matched(images[::-1], [mask]) == [("a.png", "images/a.jpg")]
    # An image folder may have the same name.
    assert matched([("masks/a.jpg", None)], [mask]) == [("a.png", "masks/a.jpg")]


def test_unmatched_images_and_annotations_are_skipped() -> None:
    images = [("a.jpg", None), ("b.jpg", None), ("xb.jpg", None)]
    assert matched(images, [truth("c.jpg"), truth("b.jpg")]) == [("b.jpg", "b.jpg")]


def test_equally_close_paths_are_an_error() -> None:
    with pytest.raises(CorpusError, match=r"both 'x/a.jpg' and 'y/a.jpg' could be 'a.jpg'"):
        matched([("x/a.jpg", None), ("y/a.jpg", None)], [truth("a.jpg")])
    with pytest.raises(CorpusError, match=r"'a.jpg' could be 'x/a.jpg' and 'y/a.jpg'"):
        matched([("a.jpg", None)], [truth("x/a.jpg"), truth("y/a.jpg")])


def test_too_few_matches_are_an_error_with_an_example_of_each_side() -> None:
    message = "0 of 1 images of the ground truth are among the 1 given: the ground truth has 'b.jpg' (id 5)"
    with pytest.raises(CorpusError, match=re.escape(message)) as caught:
        matched([("a.jpg", 4)], [truth("b.jpg", 5)])
    assert "the images have 'a.jpg' (id 4)" in str(caught.value)
    many = [(f"{i}.jpg", None) for i in range(30)]
    with pytest.raises(CorpusError, match="2 of 30"):
        matched(many, [truth(f"{i}.jpg") for i in range(28, 58)])
    for images, truths in [([], [truth("a.jpg")]), ([("a.jpg", None)], [])]:
        with pytest.raises(CorpusError, match="nothing"):
            matched(images, truths)
