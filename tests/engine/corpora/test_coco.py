import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.corpora import open_coco, open_corpus, open_hrsid
from engine.corpora.image_list import ImageList
from engine.errors import CorpusError, ImageError
from engine.objects.memory import MemoryObjects
from engine.types import ImageRecord, Reason

IMAGES = [
    {"license": 4, "file_name": "000000397133.jpg", "id": 397133, "flags": [1, {"id": 7}], "height": 20},
    {"file_name": "000000000139.jpg", "id": 139, "meta": {"id": 3, "file_name": "no.jpg"}},
    {"id": 5, "file_name": "a/b.jpg"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A corpus in COCO's layout whose list omits one image and names one that does not exist."""
    root = tmp_path / "coco"
    (root / "val2017").mkdir(parents=True)
    for name in ("000000000139.jpg", "000000397133.jpg", "COCO_val2014_000000000042.jpg", "holiday.png"):
        (root / "val2017" / name).write_bytes(f"val2017/{name}".encode())
    (root / "annotations").mkdir()
    content = {
        "info": {"images": []},
        "annotations": [{"id": 1, "image_id": 139}],
        "images": IMAGES,
        "x": [1],
    }
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content))
    return root


def test_the_images_of_a_list_come_in_its_order(folder: Path) -> None:
    corpus = open_coco(str(folder), "annotations/instances_val2017.json")
    records = list(corpus.records())
    assert [(record.path, record.coco_id) for record in records] == [
        ("val2017/000000397133.jpg", 397133), ("val2017/000000000139.jpg", 139), ("val2017/a/b.jpg", 5),
    ]  # fmt: skip
    assert [record.image_id for record in records] == [record.path for record in records]
    for i, record in enumerate(records):
        assert list(corpus.records(after=record)) == records[i + 1 :]
    assert corpus.read(records[1]) == b"val2017/000000000139.jpg"
    with pytest.raises(ImageError) as caught:
        corpus.read(records[2])
    assert caught.value.reason == Reason.MISSING
    elsewhere = open_coco(str(folder / "val2017"), str(folder / "annotations/instances_val2017.json"))
    assert next(elsewhere.records()).path == "000000397133.jpg"
    named = open_coco(str(folder), "annotations/instances_val2017.json", images="train2017/")
    assert next(named.records()).path == "train2017/000000397133.jpg"
    with pytest.raises(CorpusError, match="no longer lists 'x'"):
        next(corpus.records(after=ImageRecord(image_id="x", path="x")))


def test_a_byte_order_mark_is_not_part_of_a_list() -> None:
    objects = MemoryObjects()
    objects.write("list.json", b"\xef\xbb\xbf" + json.dumps({"images": IMAGES}).encode())
    assert [image.coco_id for image in ImageList(objects, "list.json").images()] == [397133, 139, 5]


def test_without_a_list_ids_are_read_from_file_names(folder: Path) -> None:
    corpus = open_coco(str(folder))
    assert [(record.path, record.coco_id) for record in corpus.records()] == [
        ("val2017/000000000139.jpg", 139), ("val2017/000000397133.jpg", 397133),
        ("val2017/COCO_val2014_000000000042.jpg", 42), ("val2017/holiday.png", None),
    ]  # fmt: skip
    again = open_corpus(str(folder), "coco")
    assert again.read(ImageRecord(image_id="x", path="val2017/holiday.png")) == b"val2017/holiday.png"
    with pytest.raises(CorpusError, match="--images goes with --annotations"):
        open_coco(str(folder), images="val2017")


def test_hrsid_uses_its_only_list(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "JPEGImages/P0001.jpg").write_bytes(b"chip")
    with pytest.raises(CorpusError, match="annotations/ has none"):
        open_hrsid(str(tmp_path))
    (tmp_path / "annotations").mkdir()
    listed = json.dumps({"images": [{"id": 7, "file_name": "P0001.jpg"}]})
    (tmp_path / "annotations/test2017.json").write_text(listed)
    (record,) = open_hrsid(str(tmp_path)).records()
    assert record == ImageRecord(image_id="JPEGImages/P0001.jpg", path="JPEGImages/P0001.jpg", coco_id=7)
    (tmp_path / "annotations/train2017.json").write_text(listed)
    with pytest.raises(CorpusError, match=r"--annotations FILE.json \(there are annotations/test2017.json, "):
        open_hrsid(str(tmp_path))
    assert list(open_hrsid(str(tmp_path), "annotations/train2017.json").records()) == [record]
    assert open_corpus(str(tmp_path), "hrsid").read(record) == b"chip"


def test_s3_and_disk_are_the_same_corpus(s3_server: Any, folder: Path) -> None:
    disk = open_coco(str(folder), "annotations/instances_val2017.json")
    records = list(disk.records())
    folder.rename(s3_server.root / "bucket/coco")
    for annotations in (
        "annotations/instances_val2017.json",
        "s3://bucket/coco/annotations/instances_val2017.json",
    ):
        s3 = open_coco("s3://bucket/coco", annotations)
        assert list(s3.records()) == records
    assert s3.read(records[0]) == b"val2017/000000397133.jpg"
    with pytest.raises(ImageError, match="missing"):
        s3.read(records[2])
    with pytest.raises(CorpusError, match="no such bucket"):
        open_coco("s3://nowhere", "annotations/instances_val2017.json")


def test_paths_that_lead_out_of_the_corpus_are_refused(s3_server: Any, tmp_path: Path) -> None:
    for uri in (str(tmp_path), "s3://bucket/coco"):
        for path in ("val2017/../../secret.jpg", "/etc/x.jpg"):
            with pytest.raises(ImageError) as caught:
                open_corpus(uri, "coco").read(ImageRecord(image_id="x", path=path))
            assert caught.value.reason == Reason.UNREADABLE


def image_list(data: bytes) -> ImageList:
    objects = MemoryObjects()
    objects.write("list.json", data)
    return ImageList(objects, "list.json")


def listing(*images: object) -> bytes:
    return json.dumps({"images": images}).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"I am a text.", "is not JSON"),
        (b"", "is not JSON"),
        (listing(*IMAGES)[:-20], "is not JSON, or incomplete"),
        (b'{"images": [{"id": 1, "file_name": "\xff\xfe"}]}', "is not JSON"),
        (b"[1, 2]", "has no list `images`"),
        (b'{"annotations": []}', "has no list `images`"),
        (b'{"images": {"id": 1}}', "has no list `images`"),
        (listing("a.jpg"), r"images\[0\] is not an object"),
        (listing({"id": "1", "file_name": "a"}), r"images\[0\] has no whole number as its id: '1'"),
        (listing({"id": True, "file_name": "a"}), "no whole number"),
        (listing({"id": 1 << 70, "file_name": "a"}), "is not JSON"),
        (listing({"id": 1}), r"images\[0\] \(id 1\) has no file_name"),
        (listing({"id": 1, "file_name": "a"}, {"id": 2, "file_name": "b"}, {"id": 1, "file_name": "c"}),
         r"images\[0\] and images\[2\] have the same id 1"),
        (listing({"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}), "have the same file_name"),
        (b'{"images": [{"x": ' + b"[" * 1_000_000, "nested more than 64 deep"),
        (b'{"info": ' + b'{"a":' * 1_000_000, "nested more than 64 deep"),
    ],
)  # fmt: skip
def test_the_error_for_an_unusable_list_is_one_line(data: bytes, message: str) -> None:
    with pytest.raises(CorpusError, match=message) as caught:
        image_list(data).check()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


class EndlessObjects(MemoryObjects):
    """An endless object: a beginning, then the same byte for ever."""

    def __init__(self, beginning: bytes, byte: bytes) -> None:
        super().__init__()
        self.beginning = beginning
        self.byte = byte

    def read_range(self, key: str, start: int, size: int) -> bytes:
        return (self.beginning[start:] + self.byte * size)[:size]


@pytest.mark.parametrize(
    ("beginning", "byte", "message"), [(b'{"a": ', b"[", "nested"), (b'{"a": "', b"x", "more than 2 MiB")]
)
def test_an_endless_list_is_given_up(beginning: bytes, byte: bytes, message: str) -> None:
    endless = ImageList(EndlessObjects(beginning, byte), "list.json", max_token_bytes=2 << 20)
    with pytest.raises(CorpusError, match=message):
        endless.check()


def test_missing_lists_and_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot read the annotation file"):
        open_coco(str(tmp_path), "annotations/instances_val2017.json")
    with pytest.raises(CorpusError, match="s3://bucket/prefix"):
        open_coco(str(tmp_path), "gs://bucket/list.json")
    with pytest.raises(CorpusError, match="no folder"):
        open_coco(str(tmp_path / "nowhere"))


def test_lists_of_the_development_data(development_data: Callable[[str], Path]) -> None:
    coco = open_coco(str(development_data("data/coco")), "annotations/instances_val2017.json")
    assert len(list(coco.records())) == 257
    hrsid = open_hrsid(str(development_data("data/hrsid")))
    assert len([hrsid.read(record) for record in hrsid.records()]) == 36
