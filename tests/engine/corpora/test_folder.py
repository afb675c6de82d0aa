import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.corpora import FolderCorpus, open_corpus
from engine.errors import CorpusError, ImageError
from engine.images.decoding import DecodingConfig, decode_image
from engine.types import Reason


def ids(corpus: FolderCorpus) -> list[str]:
    return [record.image_id for record in corpus.records()]


def test_images_are_found_in_all_folders_in_byte_order(tmp_path: Path) -> None:
    names = ["B.JPEG", "a-1.png", "a.webp", "a/1.tiff", "a/b/c.bmp", "a0.TIF", "ü.jpg"]
    others = [".hidden.jpg", ".git/x.png", "a/.thumbs/x.png", "notes.txt", "a/b/labels.json"]
    for name in names + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    corpus = FolderCorpus.open(str(tmp_path))
    assert ids(corpus) == names
    records = list(corpus.records())
    for i, record in enumerate(records):
        assert list(corpus.records(after=record)) == records[i + 1 :]


def test_listing_is_lazy(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a/1.png").touch()
    records = FolderCorpus.open(str(tmp_path)).records()
    assert next(records).image_id == "a/1.png"
    # The next folder has not been listed yet.
    (tmp_path / "b/2.png").touch()
    assert [record.image_id for record in records] == ["b/2.png"]


def test_files_whose_names_are_not_utf8_can_be_read(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"content")
    corpus = FolderCorpus.open(str(tmp_path))
    (record,) = corpus.records()
    assert record.image_id == "caf\\xe9.png"
    assert corpus.read(record) == b"content"
    assert list(corpus.records(after=record)) == []


def test_names_that_look_escaped_are_kept_apart(tmp_path: Path) -> None:
    names = [b"caf\xe9.png", b"caf\\xe9.png", b"\\x5c.png", b"\\\xe9.png", b"\\x41.png"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    corpus = FolderCorpus.open(str(tmp_path))
    records = list(corpus.records())
    assert len({record.image_id for record in records}) == len(names)
    assert [corpus.read(record) for record in records] == sorted(names)
    for i, record in enumerate(records):
        assert list(corpus.records(after=record)) == records[i + 1 :]


def test_the_reason_of_an_unreadable_file_does_not_name_the_place(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").touch()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    corpus = FolderCorpus.open(str(tmp_path))
    gone, loop, pipe = corpus.records()
    (tmp_path / "gone.jpg").unlink()
    for record, reason in [(gone, Reason.MISSING), (loop, Reason.UNREADABLE), (pipe, Reason.UNREADABLE)]:
        with pytest.raises(ImageError) as caught:
            corpus.read(record)
        assert caught.value.reason == reason
        assert str(tmp_path) not in caught.value.detail


def test_s3_and_disk_are_the_same_corpus(s3_server: Any, tmp_path: Path) -> None:
    for root in (tmp_path / "disk", s3_server.root / "bucket/corpus"):
        for name in ("a-b.png", "a/b.png", "a/.x.png", "z.jpg", "readme.md"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(name.encode())
    disk, s3 = FolderCorpus.open(str(tmp_path / "disk")), FolderCorpus.open("s3://bucket/corpus")
    assert ids(s3) == ids(disk) == ["a-b.png", "a/b.png", "z.jpg"]
    assert [s3.read(record) for record in s3.records()] == [disk.read(record) for record in disk.records()]
    assert ids(FolderCorpus.open("s3://bucket/nothing")) == []
    with pytest.raises(CorpusError, match="no such bucket"):
        ids(FolderCorpus.open("s3://nowhere"))


def test_skimage_photographs_exist_and_decode() -> None:
    corpus = FolderCorpus.open("skimage:")
    records = list(corpus.records())
    assert {"astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"} <= {r.path for r in records}
    assert list(corpus.records(after=records[1])) == records[2:]
    for record in records:
        assert min(decode_image(corpus.read(record), DecodingConfig()).shape[:2]) > 200


@pytest.mark.parametrize("make", [lambda path: None, Path.touch])
def test_the_error_for_a_missing_folder_says_what_to_give(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "x")
    with pytest.raises(CorpusError, match="--corpus takes a folder, s3://bucket/prefix or skimage:"):
        FolderCorpus.open(str(tmp_path / "x"))


def test_a_corpus_is_opened_by_its_recorded_kind() -> None:
    assert open_corpus("skimage:", "folder").uri == "skimage:"
    with pytest.raises(CorpusError, match="no corpus of kind 'video'"):
        open_corpus("skimage:", "video")
