from pathlib import Path

import pytest

from engine.corpora.detection import detect_kind, kind_of_names
from engine.errors import CorpusError


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["sa_000000.tar", "sa_000001.tar"], "sa1b"),
        (["sa_1.jpg", "sa_1.json"], "sa1b"),
        (["more.TAR"], "sa1b"),
        (["a.jpg", "more.tar"], "folder"),
        (["sa_1.jpg", "holiday.jpg"], "folder"),
        (["annotations/x.json", "train2014/COCO_train2014_000000000009.jpg"], "coco"),
        (["000000000009.jpg", "a.png"], "folder"),
        (["readme.txt"], "folder"),
        ([], "folder"),
    ],
)
def test_names_tell_the_kind(names: list[str], kind: str) -> None:
    assert kind_of_names(names) == kind


def test_folders_tell_hrsid(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "JPEGImages/P0001.jpg").touch()
    assert detect_kind(str(tmp_path)) == "folder"
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/train2017.json").touch()
    assert detect_kind(str(tmp_path)) == "hrsid"


def test_the_sample_photographs_are_a_folder() -> None:
    assert detect_kind("skimage:") == "folder"


def test_a_missing_folder_is_an_error() -> None:
    with pytest.raises(CorpusError, match="no folder '/nowhere'"):
        detect_kind("/nowhere")
