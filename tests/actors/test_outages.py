"""A corpus that is gone, refuses access or falls silent stops the run; no image gets a row for it."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.outages import outages_as_run_errors
from actors.pipeline import Progress
from actors.reader import ReadCrop, Reader
from engine.corpora import FolderCorpus, Sa1bCorpus
from engine.errors import PlaceError, RunError, TransientError, UsageError
from engine.images.crops import PreparationConfig
from engine.objects.memory import MemoryObjects
from engine.objects.s3 import S3Objects
from engine.types import Chunk, ImageRecord, Outcome, Reason, Status

CONFIG = PreparationConfig(image_size=(16, 16))


def chunk_of(*names: str) -> Chunk:
    return Chunk(shard=0, records=tuple(ImageRecord(image_id=name, path=name) for name in names))


@pytest.fixture
def png(photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]) -> bytes:
    return encode_image(photograph(0), "PNG")


class SilentObjects(MemoryObjects):
    """Answers nothing for keys in `silent`."""

    def __init__(self, silent: set[str]) -> None:
        super().__init__()
        self.silent = silent

    def read_range(self, key: str, start: int, size: int) -> bytes:
        if key in self.silent:
            raise TransientError("no answer")
        return super().read_range(key, start, size)


def test_a_corpus_that_falls_silent_stops_the_run(png: bytes) -> None:
    objects = SilentObjects({"b.png", "c.png"})
    objects.write("a.png", png)
    reader = Reader(FolderCorpus(objects), CONFIG, retry_waits_s=(0.01, 0.01), patience_s=0)
    read = reader.crops(chunk_of("a.png", "b.png", "c.png"))
    assert isinstance(next(read), ReadCrop)
    row = next(read)
    assert isinstance(row, Outcome)
    assert row.reason == Reason.UNREACHABLE
    with pytest.raises(PlaceError, match="answered nothing for"):
        next(read)


def test_one_image_without_an_answer_is_a_row(png: bytes) -> None:
    objects = SilentObjects({"b.png", "d.png"})
    for name in ("a.png", "c.png", "e.png"):
        objects.write(name, png)
    reader = Reader(FolderCorpus(objects), CONFIG, retry_waits_s=(), patience_s=0)
    read = list(reader.crops(chunk_of("a.png", "b.png", "c.png", "d.png", "e.png")))
    assert [isinstance(item, Outcome) for item in read] == [False, True, False, True, False]


@pytest.mark.parametrize("leaves_empty_folder", [False, True])
@pytest.mark.parametrize("open_corpus", [FolderCorpus.open, Sa1bCorpus.open])
def test_a_folder_that_is_unmounted_stops_the_run(
    tmp_path: Path, png: bytes, leaves_empty_folder: bool, open_corpus: Callable[[str], Any]
) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for name in ("a.png", "b.png"):
        (root / name).write_bytes(png)
    corpus = open_corpus(str(root))
    read = Reader(corpus, CONFIG).crops(chunk_of("a.png", "b.png"))
    next(read)
    root.rename(tmp_path / "elsewhere")
    if leaves_empty_folder:
        root.mkdir()
    with pytest.raises(PlaceError, match="images is"):
        next(read)


def test_a_missing_file_of_a_folder_that_is_there_is_a_row(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "a.png").write_bytes(png)
    (row,) = Reader(FolderCorpus.open(str(tmp_path)), CONFIG).crops(chunk_of("b.png"))
    assert isinstance(row, Outcome)
    assert row.reason == Reason.MISSING


@pytest.mark.parametrize("vanishes", ["the root", "a folder", "the contents"])
def test_a_listing_whose_place_vanishes_does_not_end(tmp_path: Path, vanishes: str) -> None:
    root = tmp_path / "images"
    for folder in "abc":
        (root / folder).mkdir(parents=True)
        (root / folder / "1.png").touch()
    listing: Iterator[ImageRecord] = FolderCorpus.open(str(root)).records()
    assert next(listing).path == "a/1.png"
    if vanishes == "a folder":
        shutil.rmtree(root / "c")
    else:
        root.rename(tmp_path / "elsewhere")
        if vanishes == "the contents":
            root.mkdir()
    with pytest.raises(PlaceError, match=r"vanished|gone|empty"):
        list(listing)


def test_a_listing_that_continues_in_a_vanished_place_does_not_end(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    (root / "1.png").touch()
    corpus = FolderCorpus.open(str(root))
    (record,) = corpus.records()
    assert list(corpus.records(after=record)) == []
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(PlaceError, match="is gone"):
        list(corpus.records(after=record))


def test_refused_credentials_stop_the_run(
    s3_server: Any, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (s3_server.root / "bucket/a.png").write_bytes(png)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(PlaceError, match="check the credentials"):
        list(Reader(FolderCorpus(S3Objects("bucket", "")), CONFIG).crops(chunk_of("a.png")))


def test_outages_end_a_run_that_the_same_command_continues() -> None:
    for error in (PlaceError("no such bucket"), TransientError("no answer")):
        with (
            pytest.raises(
                RunError, match=r"n.*; the run has stopped, and the same command goes on"
            ) as caught,
            outages_as_run_errors(),
        ):
            raise error
        assert not isinstance(caught.value, UsageError)
    with pytest.raises(ZeroDivisionError), outages_as_run_errors():
        _ = 1 / 0


def test_a_run_stops_when_too_many_images_are_rejected() -> None:
    rejected = [
        Outcome(record=ImageRecord(image_id="a", path="a"), status=Status.REJECTED, reason=Reason.CORRUPT)
    ]
    progress = Progress()
    progress.add(rejected * 99)
    progress.check_rejected(0.5)
    progress.add([Outcome(record=rejected[0].record, status=Status.LABELLED)])
    with pytest.raises(RunError, match=r"99 of 100 images are rejected \(99 corrupt\).*--max-rejected 0.5"):
        progress.check_rejected(0.5)
    progress.check_rejected(0.99)
    progress.add([Outcome(record=rejected[0].record, status=Status.LABELLED)] * 49, replaced=rejected * 49)
    assert (progress.images, progress.rejected, progress.reasons) == (100, 50, {Reason.CORRUPT: 50})
    progress.check_rejected(0.5)


def test_reading_gives_up_within_the_patience(png: bytes) -> None:
    objects = SilentObjects({f"{number}.png" for number in range(100)})
    reader = Reader(FolderCorpus(objects), CONFIG, retry_waits_s=(0.05,) * 3, patience_s=0.3)
    start = time.monotonic()
    with pytest.raises(PlaceError):
        list(reader.crops(chunk_of(*sorted(objects.silent))))
    assert time.monotonic() - start < 5
