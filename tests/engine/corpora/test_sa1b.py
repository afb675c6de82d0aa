import gzip
import pickle
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine.corpora import Sa1bCorpus, open_corpus
from engine.corpora.tar_index import TarIndexConfig
from engine.errors import CorpusError, ImageError
from engine.objects.memory import MemoryObjects
from engine.types import ImageRecord, Reason

MakeTar = Callable[..., bytes]
FILES = {
    f"sa_{n}{suffix}": f"{suffix} of {n}".encode() * n for n in range(1, 9) for suffix in (".jpg", ".json")
}


class CountedObjects(MemoryObjects):
    """Counts the ranges read."""

    def __init__(self) -> None:
        super().__init__()
        self.num_reads = 0

    def read_range(self, key: str, start: int, size: int) -> bytes:
        self.num_reads += 1
        return super().read_range(key, start, size)


def corpus_of(**tars: bytes) -> Sa1bCorpus:
    objects = MemoryObjects()
    for name, data in tars.items():
        objects.write(f"{name}.tar", data)
    return Sa1bCorpus(objects)


def outcome(corpus: Sa1bCorpus, record: ImageRecord) -> bytes | Reason:
    try:
        return corpus.read(record)
    except ImageError as error:
        return error.reason


def contents(corpus: Sa1bCorpus) -> dict[str, bytes | Reason]:
    records = list(corpus.records())
    assert len({record.image_id for record in records}) == len(records)
    return {record.path: outcome(corpus, record) for record in records}


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_read_in_place(make_tar: MakeTar, layout: int) -> None:
    long_name = "a/" * 60 + "sa_77.jpg" if layout != tarfile.USTAR_FORMAT else "sa_77.jpg"
    corpus = corpus_of(sa_000020=make_tar({**FILES, f"./{long_name}": b"long"}, format=layout))
    expected = {f"sa_000020.tar/{name}": data for name, data in FILES.items() if name.endswith(".jpg")}
    assert contents(corpus) == {**expected, f"sa_000020.tar/{long_name}": b"long"}
    records = list(corpus.records())
    assert [record.coco_id for record in records] == [*range(1, 9), 77]
    assert [record.image_id for record in records] == [record.path for record in records]
    for i, record in enumerate(records):
        assert list(corpus.records(after=record)) == records[i + 1 :]


def test_tars_and_files_come_in_the_order_of_keys(make_tar: MakeTar) -> None:
    objects = MemoryObjects()
    objects.write("b/sa_000001.tar", make_tar({"sa_9.jpg": b"nine"}))
    objects.write("a.tar", make_tar({"sa_2.jpg": b"two", "sa_1.jpg": b"one"}))
    objects.write("c/sa_5.jpg", b"five")
    objects.write("c/sa_5.json", b"{}")
    corpus = Sa1bCorpus(objects)
    records = list(corpus.records())
    assert [record.coco_id for record in records] == [2, 1, 9, 5]
    assert [corpus.read(record) for record in records] == [b"two", b"one", b"nine", b"five"]
    for i, record in enumerate(records):
        assert list(corpus.records(after=record)) == records[i + 1 :]


def test_folders_may_be_named_like_tars(make_tar: MakeTar, tmp_path: Path) -> None:
    (tmp_path / "sa_000001.tar").mkdir()
    (tmp_path / "sa_000001.tar/sa_1.jpg").write_bytes(b"loose")
    (tmp_path / "sa_000001.tar/sa_000002.TAR").write_bytes(make_tar({"x.tar/sa_2.jpg": b"two"}))
    corpus = Sa1bCorpus.open(str(tmp_path))
    assert contents(corpus) == {
        "sa_000001.tar/sa_000002.TAR/x.tar/sa_2.jpg": b"two", "sa_000001.tar/sa_1.jpg": b"loose",
    }  # fmt: skip
    records = list(corpus.records())
    assert list(corpus.records(after=records[0])) == records[1:]


def test_compressed_tars_are_rows_and_hidden_ones_are_skipped(make_tar: MakeTar) -> None:
    objects = MemoryObjects()
    packed = gzip.compress(make_tar(FILES), compresslevel=0)
    for key in ("a.tar.gz", "b.tar", "._c.tar", ".d/e.tar"):
        objects.write(key, packed)
    corpus = Sa1bCorpus(objects)
    assert contents(corpus) == {"a.tar.gz": Reason.UNREADABLE, "b.tar/@0": Reason.CORRUPT}
    for record in corpus.records():
        with pytest.raises(ImageError, match="uncompress it"):
            corpus.read(record)


def test_an_index_is_kept_and_used(make_tar: MakeTar) -> None:
    config = TarIndexConfig(first_segment=2, window_bytes=512)
    tars, store = CountedObjects(), MemoryObjects()
    tars.write("a.tar", make_tar(FILES))
    records = list(Sa1bCorpus(tars, store, config).records())
    # The end mark follows the last image's annotations, so the last segment is an empty one.
    assert list(store.keys()) == [f"tar-index/a.tar/{n:03d}.parquet" for n in range(3)]
    for kept, most_reads in ((store, 1), (None, 18)):
        corpus = pickle.loads(pickle.dumps(Sa1bCorpus(tars, kept, config)))
        corpus._objects = tars
        tars.num_reads = 0
        assert corpus.read(records[-1]) == FILES["sa_8.jpg"]
        assert tars.num_reads <= most_reads
    # An interrupted listing continues where the index ends, without reading a header twice.
    store = MemoryObjects()
    first = Sa1bCorpus(tars, store, config).records()
    assert [next(first).coco_id for _ in range(3)] == [1, 2, 3]
    tars.num_reads = 0
    rest = Sa1bCorpus(tars, store, config).records(after=records[2])
    assert [record.coco_id for record in rest] == [4, 5, 6, 7, 8]
    assert tars.num_reads <= 6


def test_an_index_of_another_tar_is_not_used(make_tar: MakeTar) -> None:
    tars, store = MemoryObjects(), MemoryObjects()
    tars.write("a.tar", make_tar(FILES))
    list(Sa1bCorpus(tars, store).records())
    store.write("tar-index/b.tar/000.parquet", b"no index")
    tars.write("a.tar", make_tar({"sa_5.jpg": b"new"}))
    tars.write("b.tar", make_tar({"sa_6.jpg": b"other"}))
    for _ in range(2):
        assert contents(Sa1bCorpus(tars, store)) == {"a.tar/sa_5.jpg": b"new", "b.tar/sa_6.jpg": b"other"}


def test_a_listing_cannot_continue_in_a_changed_tar(make_tar: MakeTar) -> None:
    last = ImageRecord(image_id="a.tar/sa_3.jpg", path="a.tar/sa_3.jpg")
    with pytest.raises(CorpusError, match=r"no longer has .sa_3\.jpg."):
        list(corpus_of(a=make_tar({"sa_1.jpg": b"one"})).records(after=last))


def test_path_tricks_and_links_are_rows(make_tar: MakeTar) -> None:
    links = {}
    for kind, name in (
        (tarfile.SYMTYPE, "sym.jpg"),
        (tarfile.LNKTYPE, "hard.jpg"),
        (tarfile.FIFOTYPE, "pipe.jpg"),
    ):
        links[name] = tarfile.TarInfo(name)
        links[name].type = kind
        links[name].linkname = "/etc/passwd"
    tricks = {"../up.jpg": b"1", "/etc/abs.jpg": b"2", "a/../../b.jpg": b"3"}
    found = contents(corpus_of(a=make_tar({**tricks, **links, ".hidden.jpg": b"", "sa_1.jpg": b"fine"})))
    assert found.pop("a.tar/sa_1.jpg") == b"fine"
    assert list(found.values()) == [Reason.UNREADABLE] * 6
    assert all(path.startswith("a.tar/@") for path in found)


def test_repeated_names_are_duplicates(make_tar: MakeTar) -> None:
    found = contents(
        corpus_of(a=make_tar([("sa_1.jpg", b"one"), ("./sa_1.jpg", b"two"), ("sa_2.jpg", b"three")]))
    )
    assert found == {"a.tar/sa_1.jpg": b"one", "a.tar/@1024": Reason.DUPLICATE, "a.tar/sa_2.jpg": b"three"}


def test_a_damaged_header_costs_only_its_member(make_tar: MakeTar) -> None:
    for damage in (b"\xff" * 512, b"\0" * 512):
        tar = bytearray(make_tar({"sa_1.jpg": b"1" * 600, "sa_2.jpg": b"2" * 3_000_000, "sa_3.jpg": b"3"}))
        tar[1536:2048] = damage
        assert contents(corpus_of(a=bytes(tar))) == {
            "a.tar/sa_1.jpg": b"1" * 600,
            "a.tar/@1536": Reason.CORRUPT,
            "a.tar/sa_3.jpg": b"3",
        }


def test_a_tar_that_is_cut_short(make_tar: MakeTar) -> None:
    tar = make_tar({"sa_1.jpg": b"1" * 600, "sa_2.jpg": b"2" * 600})
    first = {"a.tar/sa_1.jpg": b"1" * 600}
    assert contents(corpus_of(a=tar[:2500])) == {**first, "a.tar/sa_2.jpg": Reason.TRUNCATED}
    assert contents(corpus_of(a=tar[:2000])) == {**first, "a.tar/@1536": Reason.TRUNCATED}
    assert contents(corpus_of(a=tar[:1536])) == {**first, "a.tar/@1536": Reason.TRUNCATED}
    assert contents(corpus_of(a=b"")) == {"a.tar/@0": Reason.TRUNCATED}


def test_a_member_that_claims_too_much(make_tar: MakeTar) -> None:
    huge = tarfile.TarInfo("sa_2.jpg")
    huge.size = 10 << 30
    tar = make_tar({"sa_1.jpg": b"one", "sa_2.jpg": b"", "sa_3.jpg": b"three"})
    tar = tar[:1024] + huge.tobuf(tarfile.GNU_FORMAT) + tar[1536:]
    found = contents(corpus_of(a=tar))
    assert found == {
        "a.tar/sa_1.jpg": b"one", "a.tar/sa_2.jpg": Reason.TOO_LARGE, "a.tar/sa_3.jpg": b"three",
    }  # fmt: skip


def test_files_that_are_no_tars_and_missing_files(make_tar: MakeTar, tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_bytes(b"I am a text. " * 100)
    (tmp_path / "loop.tar").symlink_to("loop.tar")
    (tmp_path / "whole.tar").write_bytes(make_tar({"sa_1.jpg": b"one"}))
    corpus = Sa1bCorpus.open(str(tmp_path))
    assert contents(corpus) == {
        "loop.tar": Reason.UNREADABLE, "text.tar/@0": Reason.CORRUPT, "whole.tar/sa_1.jpg": b"one",
    }  # fmt: skip
    record = ImageRecord(image_id="x", path="whole.tar/sa_7.jpg")
    assert outcome(corpus, record) == Reason.MISSING
    (tmp_path / "whole.tar").unlink()
    fresh = Sa1bCorpus.open(str(tmp_path))
    assert outcome(fresh, ImageRecord(image_id="y", path="whole.tar/sa_1.jpg")) == Reason.MISSING


def test_tars_on_s3_and_on_disk_are_the_same_corpus(
    s3_server: Any, make_tar: MakeTar, tmp_path: Path
) -> None:
    stores = []
    for root in (tmp_path / "disk", s3_server.root / "bucket/sa1b"):
        root.mkdir()
        (root / "sa_000020.tar").write_bytes(make_tar(FILES))
        (root / "sa_000021.tar").write_bytes(make_tar({"sa_30.jpg": b"30"})[:1000])
        stores.append(MemoryObjects())
    uris = (str(tmp_path / "disk"), "s3://bucket/sa1b")
    disk, s3 = (open_corpus(uri, "sa1b", kept) for uri, kept in zip(uris, stores, strict=True))
    assert isinstance(disk, Sa1bCorpus)
    assert isinstance(s3, Sa1bCorpus)
    assert contents(disk) == contents(s3)
    assert [list(store.keys()) for store in stores] == [
        ["tar-index/sa_000020.tar/000.parquet", "tar-index/sa_000021.tar/000.parquet"]
    ] * 2
    assert stores[0]._objects == stores[1]._objects


class SlowObjects(MemoryObjects):
    """Answers with the latency of a server."""

    def read_range(self, key: str, start: int, size: int) -> bytes:
        time.sleep(0.002)
        return super().read_range(key, start, size)


def test_concurrent_listings_and_reads_agree(make_tar: MakeTar) -> None:
    # As in a job, where one thread plans and another counts the images of the same corpus.
    objects = SlowObjects()
    for number in range(3):
        files = {f"sa_{number}{n:02d}.jpg": bytes([n]) * 10_000 for n in range(30)}
        objects.write(f"sa_{number:06d}.tar", make_tar(files))
    expected = list(Sa1bCorpus(objects).records())
    assert len(expected) == 90
    corpus = Sa1bCorpus(objects, MemoryObjects(), TarIndexConfig(first_segment=1))
    with ThreadPoolExecutor(4) as threads:
        listings = [threads.submit(lambda: list(corpus.records())) for _ in range(3)]
        last = threads.submit(corpus.read, expected[-1])
        assert all(listing.result() == expected for listing in listings)
        assert last.result() == bytes([29]) * 10_000
