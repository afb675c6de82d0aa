"""Behaviour of all formats: skipped images, existing destinations and interrupted exports."""

import hashlib
import io
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.corpora import FolderCorpus
from engine.errors import ConfigurationError, CorpusError, StoreError, TransientError
from engine.export.batch import ExportReport
from engine.export.export import ExportConfig, export_version
from engine.export.images import safe_name
from engine.export.split import SplitConfig, is_validation
from engine.objects.memory import MemoryObjects
from engine.objects.object_store import ObjectStore, open_objects
from engine.store.selection import SelectionConfig
from engine.types import ImageRecord

COCO = ExportConfig(format="coco")
FORMATS = ("coco", "yolo", "webdataset", "parquet")


def list_keys(objects: ObjectStore) -> list[str]:
    return list(objects.keys())


def contents(objects: ObjectStore) -> dict[str, bytes]:
    return {key: objects.read(key) for key in list_keys(objects)}


@pytest.mark.parametrize("name", FORMATS)
def test_unavailable_images_are_skipped_and_reported(labelled: Any, name: str) -> None:
    (labelled.folder / "image.2.jpg").unlink()
    (labelled.folder / "image.3.png").write_bytes(b"another")
    objects = MemoryObjects()
    report = export_version(labelled.version, ExportConfig(format=name), objects, corpus=labelled.corpus)
    assert report is not None
    assert (report.images, report.unavailable) == (11, {"missing": 1, "corrupt": 1})
    assert report.rejected == {"truncated": 1}
    assert ("image.3.png", "corrupt", "the file has changed since it was labelled") in report.listed
    manifest = json.loads(objects.read("export.json"))
    assert manifest["finished"]
    assert manifest["images"] == 11
    assert manifest["unavailable"] == {"missing": 1, "corrupt": 1}
    everything = b"".join(data for key, data in contents(objects).items() if key != "export.json")
    assert b"image.2.jpg" not in everything
    assert safe_name("image.2.jpg").encode() not in everything


@pytest.mark.parametrize("name", FORMATS)
def test_a_corpus_without_any_of_the_images_is_an_error(labelled: Any, tmp_path: Path, name: str) -> None:
    objects, config = MemoryObjects(), ExportConfig(format=name)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/another.jpg").touch()
    elsewhere = FolderCorpus(open_objects(str(tmp_path / "elsewhere")))
    with pytest.raises(CorpusError, match=r"none of 13 images are in .*elsewhere.*missing.*give the corpus"):
        export_version(labelled.version, config, objects, corpus=elsewhere)
    assert not json.loads(objects.read("export.json"))["finished"]
    report = export_version(labelled.version, config, objects, corpus=labelled.corpus)
    assert report is not None
    assert report.images == 13


def test_an_export_is_rebuilt_once_its_missing_images_are_available(labelled: Any) -> None:
    lost = labelled.folder / "image.2.jpg"
    data = lost.read_bytes()
    lost.unlink()
    objects = MemoryObjects()
    export_version(labelled.version, COCO, objects, corpus=labelled.corpus)
    before = contents(objects)
    lost.write_bytes(b"another")
    assert export_version(labelled.version, COCO, objects, corpus=labelled.corpus) is None
    assert contents(objects) == before
    lost.write_bytes(data)
    report = export_version(labelled.version, COCO, objects, corpus=labelled.corpus)
    assert report is not None
    assert (report.images, report.unavailable) == (13, {})
    assert objects.read("images/image.2.jpg") == data


def test_an_outage_ends_the_export(labelled: Any) -> None:
    class UnreachableCorpus(FolderCorpus):
        def read(self, record: ImageRecord) -> bytes:
            if record.image_id == "no object.png":
                raise TransientError("no answer")
            return super().read(record)

    objects = MemoryObjects()
    corpus = UnreachableCorpus(open_objects(str(labelled.folder)))
    with pytest.raises(TransientError):
        export_version(labelled.version, COCO, objects, corpus=corpus)
    assert not json.loads(objects.read("export.json"))["finished"]
    assert "annotations/instances_train.json" not in list_keys(objects)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("place", ["folder", "s3"])
def test_a_killed_export_is_unfinished_and_is_rebuilt(
    labelled: Any, tmp_path: Path, request: pytest.FixtureRequest, name: str, place: str
) -> None:
    if place == "s3":
        request.getfixturevalue("s3_server")
    objects = open_objects(str(tmp_path / "out") if place == "folder" else "s3://bucket/out")
    config = ExportConfig(format=name)

    def die(report: ExportReport) -> None:
        raise Killed

    with pytest.raises(Killed):
        export_version(labelled.version, config, objects, corpus=labelled.corpus, on_progress=die)
    assert not json.loads(objects.read("export.json"))["finished"]
    assert [key for key in list_keys(objects) if key.endswith((".tar", ".parquet", "_train.json"))] == []
    objects.write("labels/train/stale.txt", b"of an export that died")
    export_version(labelled.version, config, objects, corpus=labelled.corpus)
    undisturbed = MemoryObjects()
    export_version(labelled.version, config, undisturbed, corpus=labelled.corpus)
    assert contents(objects) == contents(undisturbed)


def test_a_second_export_does_nothing(labelled: Any) -> None:
    objects = MemoryObjects()
    assert export_version(labelled.version, COCO, objects) is not None
    before = contents(objects)
    assert export_version(labelled.version, COCO, objects) is None
    assert contents(objects) == before
    assert export_version(labelled.version, COCO, objects, overwrite=True) is not None
    assert contents(objects) == before


def test_another_export_is_replaced_only_with_overwrite(labelled: Any) -> None:
    objects = MemoryObjects()
    yolo = ExportConfig(format="yolo")
    export_version(labelled.version, yolo, objects, corpus=labelled.corpus)
    with pytest.raises(StoreError, match=r"format is 'yolo' there, 'coco' here.*overwrite it"):
        export_version(labelled.version, COCO, objects)
    cut = replace(COCO, selection=SelectionConfig(min_score=0.3))
    export_version(labelled.version, cut, objects, overwrite=True)
    assert list_keys(objects) == [
        "annotations/instances_train.json", "annotations/instances_val.json", "export.json",
    ]  # fmt: skip


def test_extended_labels_are_another_export(labelled: Any) -> None:
    objects = MemoryObjects()
    export_version(labelled.version, COCO, objects)
    row = labelled.version.shard(0)[0]
    labelled.version.commit(2, [replace(row, record=replace(row.record, image_id="new"))])
    labelled.version.finish()
    with pytest.raises(StoreError, match="labels is"):
        export_version(labelled.version, COCO, objects)


@pytest.mark.parametrize("manifest", [None, b"{}", b"no json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_files_are_never_touched(labelled: Any, manifest: bytes | None, overwrite: bool) -> None:
    objects = MemoryObjects()
    objects.write("images/holiday.jpg", b"mine")
    if manifest is not None:
        objects.write("export.json", manifest)
    before = contents(objects)
    with pytest.raises(StoreError):
        export_version(labelled.version, COCO, objects, overwrite=overwrite)
    assert contents(objects) == before


def add_images(labelled: Any, files: dict[str, bytes]) -> None:
    """Commit a further shard of these files, each with the first image's masks."""
    row = labelled.version.shard(0)[0]
    rows = []
    for name, data in files.items():
        (labelled.folder / name).write_bytes(data)
        record = replace(row.record, image_id=name, path=name)
        rows.append(replace(row, record=record, sha256=hashlib.sha256(data).hexdigest()))
    labelled.version.commit(2, rows)


def rotated_image() -> tuple[Image.Image, Image.Exif]:
    """White pixels with black upper rows, and EXIF that rotates them anticlockwise: black on the left."""
    pixels = np.full((40, 24, 3), 255, np.uint8)
    pixels[:10] = 0
    exif = Image.Exif()
    exif[0x0112] = 8
    return Image.fromarray(pixels), exif


def test_images_rotated_by_exif_are_stored_upright(
    make_labelled: Callable[..., Any], encode_image: Callable[..., bytes]
) -> None:
    labelled = make_labelled(1)
    image, exif = rotated_image()
    files = {
        "rotated.jpg": encode_image(image, "JPEG", exif=exif),
        "rotated.png": encode_image(image, "PNG", exif=exif),
        "rotated.webp": encode_image(image, "WEBP", exif=exif),
        "plain.tif": encode_image(image, "TIFF", tiffinfo={0x0112: 8}),
        "lzw.tif": encode_image(image, "TIFF", tiffinfo={0x0112: 8}, compression="tiff_lzw"),
        "jpeg.tif": encode_image(image, "TIFF", tiffinfo={0x0112: 8}, compression="jpeg"),
    }
    add_images(labelled, files)
    objects = MemoryObjects()
    export_version(labelled.version, COCO, objects, corpus=labelled.corpus)
    for name, data in files.items():
        stored = Image.open(io.BytesIO(objects.read(f"images/{name}")))
        assert stored.size == (40, 24)
        assert stored.getexif().get(0x0112, 1) == 1
        assert stored.info.get("compression") == Image.open(io.BytesIO(data)).info.get("compression")
        assert np.asarray(stored.convert("L"))[:, :8].max() < 30


def thunderscan_tiff(width: int, height: int, orientation: int) -> bytes:
    """A white 4-bit grey TIFF with ThunderScan compression, which libtiff decodes but cannot encode."""
    data = bytes([0b1100_1111]) * (width * height)
    short, long = 3, 4
    tags = [
        (256, long, width), (257, long, height), (258, short, 4), (259, short, 32809), (262, short, 1),
        (273, long, 8), (274, short, orientation), (277, short, 1), (278, long, height),
        (279, long, len(data)),
    ]  # fmt: skip
    header = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return header + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_an_image_that_cannot_be_stored_upright_is_skipped(make_labelled: Callable[..., Any]) -> None:
    labelled = make_labelled(1)
    add_images(labelled, {"rotated.tif": thunderscan_tiff(24, 40, orientation=8)})
    report = export_version(labelled.version, COCO, MemoryObjects(), corpus=labelled.corpus)
    assert report is not None
    assert (report.images, report.unavailable) == (2, {"failed": 1})
    ((name, reason, detail),) = report.listed
    assert (name, reason) == ("rotated.tif", "failed")
    assert detail.startswith("it cannot be stored upright: OSError: encoder error")


def test_files_without_an_image_suffix_get_their_formats(
    make_labelled: Callable[..., Any], encode_image: Callable[..., bytes]
) -> None:
    labelled = make_labelled(1)
    image, _ = rotated_image()
    add_images(
        labelled,
        {
            "000139": encode_image(image, "JPEG"),
            "shot.2": encode_image(image, "TIFF"),
            "named.JPG": encode_image(image, "PNG"),
        },
    )
    objects = MemoryObjects()
    config = ExportConfig(format="yolo", split=SplitConfig(val_fraction=0))
    export_version(labelled.version, config, objects, corpus=labelled.corpus)
    for name, suffix in (("000139", ".jpg"), ("shot.2", ".tif"), ("named.JPG", ".jpg")):
        assert f"images/train/{safe_name(name)}{suffix}" in list_keys(objects)


@pytest.mark.parametrize("name", ["yolo", "webdataset"])
def test_formats_that_contain_the_images_need_a_corpus(labelled: Any, name: str) -> None:
    objects = MemoryObjects()
    with pytest.raises(ConfigurationError, match="give the corpus"):
        export_version(labelled.version, ExportConfig(format=name), objects)
    assert list_keys(objects) == []


def test_wrong_settings_are_errors() -> None:
    with pytest.raises(ConfigurationError, match="val_fraction is a share >= 0 and < 1, got 1"):
        SplitConfig(val_fraction=1)
    with pytest.raises(ConfigurationError, match="segmentation is a setting of format coco, not of yolo"):
        ExportConfig(format="yolo", segmentation="polygon")


def test_the_split_depends_on_image_id_and_seed_alone() -> None:
    names = [f"{i}.jpg" for i in range(4000)]
    config = SplitConfig(val_fraction=0.1)
    drawn = is_validation(names, config)
    assert 330 < drawn.sum() < 470
    assert np.array_equal(is_validation(names[1000:], config), drawn[1000:])
    # A larger fraction contains the smaller one.
    assert is_validation(names, SplitConfig(val_fraction=0.2))[drawn].all()
    assert not np.array_equal(is_validation(names, SplitConfig(val_fraction=0.1, seed=1)), drawn)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/b.c/d.jpg", "/x", "..", ".", "", "ä☃", "a b\n.png", "x" * 300]
)
def test_names_are_safe(name: str) -> None:
    safe = safe_name(name)
    assert set(safe) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    assert 12 < len(safe) < 80
    assert safe_name(name + "x") != safe
