"""Corpora in their published layouts, intact and broken, labelled as a user does."""

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.corpora import open_corpus
from engine.masks.rle import decode_rles
from engine.objects.object_store import open_objects
from engine.store.pseudo_labels import PseudoLabelStore, Version
from engine.types import Reason, Status
from jobs.cli.console import parse_arguments
from jobs.label_coco import CocoArguments
from jobs.label_hrsid import HrsidArguments

RunJob = Callable[..., subprocess.CompletedProcess[str]]
LabelsIn = Callable[[Path], dict[str, bytes]]
QUICK = ("--refine", "none", "--encoder", "descriptor", "--encoder.image-size", "96")


def version_at(uri: Path | str) -> Version:
    return PseudoLabelStore(open_objects(str(uri))).version()


def succeeded(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def make_image(
    photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]
) -> Callable[[int], bytes]:
    """`make_image(seed)` is the file of a photograph of 96 x 128, different for each seed."""

    def make(seed: int) -> bytes:
        return encode_image(np.kron(photograph(seed), np.ones((2, 2, 1), np.uint8)), "JPEG", quality=95)

    return make


def test_tars_on_s3_are_labelled_in_tiles(
    run_job: RunJob, s3_server: Any, make_image: Callable[[int], bytes]
) -> None:
    """From S3 to S3. The tar files hold valid images, a damaged one, a truncated one and a link."""
    corpus = s3_server.root / "bucket/sa1b"
    corpus.mkdir()
    for tar_number in (20, 21):
        with tarfile.open(corpus / f"sa_{tar_number:06d}.tar", "w") as tar:
            for number in range(4):
                name = f"sa_{10 * tar_number + number}"
                add_member(tar, f"./{name}.jpg", make_image(number))
                add_member(tar, f"./{name}.json", b"{}")
            add_member(tar, "broken.jpg", make_image(5)[:900])
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
            add_member(tar, "cut.jpg", bytes(3000))
    cut = corpus / "sa_000021.tar"
    with tarfile.open(cut) as tar:
        within_last_member = tar.getmember("cut.jpg").offset_data + 1000
    cut.write_bytes(cut.read_bytes()[:within_last_member])
    flags = (*QUICK, "--tile", "64", "--shard-size", "3", "--chunk-size", "4")
    uris = ("--corpus", "s3://bucket/sa1b", "--store", "s3://bucket/store")
    output = succeeded(run_job("label_sa1b", *uris, *flags))
    assert "rejected 'sa_000020.tar/broken.jpg': truncated" in output
    version = version_at("s3://bucket/store")
    assert version.info.corpus_kind == "sa1b"
    assert version.info.configuration["tiling"]["tile"] == 64
    rows = list(version.outcomes())
    by_reason = {row.record.path: row.reason for row in rows if row.status == Status.REJECTED}
    link = next(path for path in by_reason if path.startswith("sa_000020.tar/@"))
    assert by_reason == {
        "sa_000020.tar/broken.jpg": Reason.TRUNCATED, link: Reason.UNREADABLE,
        "sa_000020.tar/cut.jpg": Reason.NOT_AN_IMAGE,
        "sa_000021.tar/broken.jpg": Reason.TRUNCATED,
        link.replace("20.tar", "21.tar"): Reason.UNREADABLE, "sa_000021.tar/cut.jpg": Reason.TRUNCATED,
    }  # fmt: skip
    valid = [row for row in rows if row.status != Status.REJECTED]
    assert [row.record.coco_id for row in valid] == [200, 201, 202, 203, 210, 211, 212, 213]
    assert {(row.height, row.width) for row in valid} == {(96, 128)}
    assert sum(len(row.instances or ()) for row in valid) > 0
    for row in valid:
        data = open_corpus("s3://bucket/sa1b", "sa1b", open_objects("s3://bucket/store")).read(row.record)
        assert data == make_image((row.record.coco_id or 0) % 10)
        if row.instances is not None:
            masks = decode_rles(row.instances.rles, row.instances.size)
            assert [mask.sum() for mask in masks] == row.instances.areas.tolist()


def test_a_list_that_grows(
    labels_in: LabelsIn, run_job: RunJob, run_here: RunJob, cluster: Any,
    make_image: Callable[[int], bytes], tmp_path: Path,
) -> None:  # fmt: skip
    corpus, store = tmp_path / "coco", tmp_path / "store"
    (corpus / "annotations").mkdir(parents=True)
    (corpus / "val2017").mkdir()
    for number in range(4):
        (corpus / f"val2017/{number:012d}.jpg").write_bytes(make_image(number))
    annotations = corpus / "annotations/instances_val2017.json"

    command = (
        "label_coco", "--corpus", str(corpus), "--annotations", "annotations/instances_val2017.json",
        "--store", str(store), "--shard-size", "2", *QUICK,
    )  # fmt: skip

    def label(listed: list[int], *more: str) -> list[tuple[int | None, Reason | None]]:
        images = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in listed]
        annotations.write_text(json.dumps({"images": images}))
        succeeded(run_job(*command, *more, "--address", cluster.address, **cluster.environment))
        rows = version_at(store).outcomes()
        return [(row.record.coco_id, row.reason if row.status == Status.REJECTED else None) for row in rows]

    assert label([3, 9, 1]) == [(3, None), (9, Reason.MISSING), (1, None)]
    first = version_at(store)
    assert first.info.corpus_kind == "coco"
    before = labels_in(store / first.name)
    assert label([0, 3, 9, 1], "--extend") == [(3, None), (9, Reason.MISSING), (1, None), (0, None)]
    after = labels_in(store / first.name)
    assert {name: data for name, data in before.items() if after[name] != data}.keys() == {"manifest.parquet"}
    assert [row.record.coco_id for row in first.shard(2)] == [0]
    # Only the settings that differ are named.
    refusal = run_here(*command, "--promerge.tau-b", "0.3")
    assert refusal.returncode == 2
    assert "(promerge.tau_b is 0.2 there, 0.3 here); use" in refusal.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no JSON", "is not JSON"),
        (b'{"info": ' + b"[" * 100_000, "nested more than 64 deep"),
        (b'{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}', "have the same id 1"),
        (b'{"images": []}', "no images in"),
    ],
)
def test_an_unusable_list_is_one_line(run_here: RunJob, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/test2017.json").write_bytes(content)
    flags = ["--corpus", str(tmp_path), "--store", str(tmp_path / "store")]
    for job, more in (("label_coco", ["--annotations", "annotations/test2017.json"]), ("label_hrsid", [])):
        refused = run_here(job, *flags, *more)
        (error,) = refused.stderr.strip().splitlines()
        assert refused.returncode == 2
        assert message in error
        assert not (tmp_path / "store").exists()


def test_hrsid_is_labelled_in_tiles_by_default() -> None:
    flags = ["--corpus", "a", "--store", "b"]
    assert parse_arguments(HrsidArguments, flags).labelling.tiling.tile == 400
    finer = parse_arguments(HrsidArguments, [*flags, "--tile", "200", "--promerge.tau-b", "0.1"]).labelling
    assert (finer.tiling.tile, finer.tiling.overlap, finer.promerge.tau_b) == (200, 0.25, 0.1)
    assert parse_arguments(CocoArguments, flags).labelling.tiling.tile is None


@pytest.mark.slow
def test_published_corpora_give_equal_stores_from_disk_and_s3(
    labels_in: LabelsIn,
    run_job: RunJob,
    cluster: Any,
    s3_server: Any,
    development_data: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    bucket = s3_server.root / "bucket"
    for name in ("coco", "hrsid", "sa1b"):
        shutil.copytree(development_data(f"data/{name}"), bucket / name)
    (bucket / "tars").mkdir()
    photographs = sorted((bucket / "sa1b").glob("*.jpg"))
    for number, some in enumerate((photographs[:6], photographs[6:])):
        with tarfile.open(bucket / f"tars/sa_{number:06d}.tar", "w") as tar:
            for path in some:
                add_member(tar, f"./{path.name}", path.read_bytes())
                add_member(tar, f"./{path.stem}.json", b"{}")
    listed = ("--annotations", "annotations/instances_val2017.json")
    for job, name, more, count in (
        ("label_coco", "coco", listed, 257),
        ("label_hrsid", "hrsid", (), 36),
        ("label_sa1b", "sa1b", ("--tile", "1000"), 11),
        ("label_sa1b", "tars", ("--tile", "1000"), 11),
    ):
        flags = ("--refine", "none", *more)
        from_disk = ("--corpus", str(bucket / name), "--store", str(tmp_path / name))
        succeeded(run_job(job, *from_disk, *flags, "--address", cluster.address, **cluster.environment))
        from_s3 = ("--corpus", f"s3://bucket/{name}", "--store", f"s3://bucket/stores/{name}")
        succeeded(run_job(job, *from_s3, *flags))
        assert labels_in(bucket / "stores" / name) == labels_in(tmp_path / name)
        rows = list(version_at(tmp_path / name).outcomes())
        assert len({row.record.image_id for row in rows}) == count
        assert all(row.status != Status.REJECTED and row.record.coco_id is not None for row in rows)
    loose, tars = (version_at(tmp_path / name).outcomes() for name in ("sa1b", "tars"))
    for one, other in zip(loose, tars, strict=True):
        assert (one.sha256, one.record.coco_id) == (other.sha256, other.record.coco_id)
        assert (one.instances is None) == (other.instances is None)
        if one.instances is not None and other.instances is not None:
            assert one.instances.rles == other.instances.rles
