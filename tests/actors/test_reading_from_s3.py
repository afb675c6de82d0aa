"""Reading from a server that is killed, refuses access, or lacks an image."""

import io
import tarfile
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from actors.reader import ReadCrop, Reader
from engine.corpora import Corpus, Sa1bCorpus, open_coco, open_corpus, open_hrsid
from engine.errors import CorpusError
from engine.images.crops import PreparationConfig
from engine.objects.memory import MemoryObjects
from engine.objects.s3 import S3Objects
from engine.store.planning import check_has_images
from engine.types import Chunk, ImageRecord, Outcome, Reason


def read_chunk(corpus: Corpus, records: list[ImageRecord]) -> list[ReadCrop | Outcome]:
    reader = Reader(corpus, PreparationConfig(image_size=(16, 16)), retry_waits_s=(0.5,) * 20)
    return list(reader.crops(Chunk(shard=0, records=tuple(records))))


@pytest.fixture
def photographs(
    photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]
) -> dict[str, bytes]:
    return {f"sa_{seed}.jpg": encode_image(photograph(seed), "JPEG") for seed in range(1, 6)}


@pytest.mark.parametrize("is_tar", [True, False])
def test_a_server_that_is_killed_and_restarted_loses_no_image(
    s3_server: Any, photographs: dict[str, bytes], is_tar: bool
) -> None:
    folder = s3_server.root / "bucket/sa1b"
    folder.mkdir()
    if is_tar:
        with tarfile.open(folder / "sa_000020.tar", "w") as tar:
            for name, data in photographs.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    else:
        for name, data in photographs.items():
            (folder / name).write_bytes(data)
    corpus = Sa1bCorpus.open("s3://bucket/sa1b", MemoryObjects())
    records = list(corpus.records())
    assert len(records) == 5

    class Killer(Sa1bCorpus):
        """Kills the server for a second before the third image."""

        def read(self, record: ImageRecord) -> bytes:
            if record == records[2] and not deaths:
                deaths.append(time.monotonic())
                s3_server.kill()
                restart.start()
            return super().read(record)

    deaths: list[float] = []
    restart = threading.Timer(1, s3_server.start)
    crops = read_chunk(Killer(S3Objects("bucket", "sa1b", attempts=2)), records)
    assert time.monotonic() - deaths[0] > 1
    restart.join()
    assert [crop.crop.size for crop in crops if isinstance(crop, ReadCrop)] == [(48, 64)] * 5


def test_a_missing_image_is_a_row(s3_server: Any, photographs: dict[str, bytes]) -> None:
    (s3_server.root / "bucket/sa_1.jpg").write_bytes(photographs["sa_1.jpg"])
    records = [ImageRecord(image_id=name, path=name) for name in ("sa_1.jpg", "sa_2.jpg", "no.tar/sa_3.jpg")]
    found, *rejected = read_chunk(open_corpus("s3://bucket", "sa1b"), records)
    assert isinstance(found, ReadCrop)
    assert len(rejected) == 2
    for row in rejected:
        assert isinstance(row, Outcome)
        assert row.reason == Reason.MISSING
        assert "s3://" not in row.detail


def open_with_list(uri: str) -> Corpus:
    return open_coco(uri, "annotations/instances_val2017.json")


@pytest.mark.parametrize("open_kind", [open_coco, open_with_list, open_hrsid, Sa1bCorpus.open])
def test_an_unusable_bucket_is_refused_in_one_line(
    s3_server: Any, monkeypatch: pytest.MonkeyPatch, open_kind: Callable[[str], Corpus]
) -> None:
    with pytest.raises(CorpusError, match="no such bucket") as caught:
        check_has_images(open_kind("s3://nowhere"))
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(CorpusError, match="check the credentials") as caught:
        check_has_images(open_kind("s3://bucket"))
    assert "\n" not in str(caught.value)
    assert "wrong" not in str(caught.value)
