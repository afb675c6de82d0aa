"""What all formats have in common: what is left out, places that hold something, and exports that die."""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.corpora import FolderCorpus
from engine.errors import ConfigurationError, CorpusError, StoreError, TransientError
from engine.export import ExportConfig, ExportReport, export_version
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
def test_images_that_cannot_be_had_are_left_out_and_told(labelled: Any, name: str) -> None:
    (labelled.folder / "image.2.jpg").unlink()
    (labelled.folder / "image.3.png").write_bytes(b"another")
    objects = MemoryObjects()
    report = export_version(labelled.version, ExportConfig(format=name), objects, corpus=labelled.corpus)
    assert report is not None
    assert (report.images, report.unavailable) == (11, {"missing": 1, "corrupt": 1})
    assert report.rejected == {"truncated": 1}
    assert ("image.3.png", "corrupt", "the file is not the one that was labelled") in report.listed
    manifest = json.loads(objects.read("export.json"))
    assert manifest["finished"]
    assert manifest["images"] == 11
    assert manifest["unavailable"] == {"missing": 1, "corrupt": 1}
    everything = b"".join(data for key, data in contents(objects).items() if key != "export.json")
    assert b"image.2.jpg" not in everything
    assert safe_name("image.2.jpg").encode() not in everything


@pytest.mark.parametrize("name", FORMATS)
def test_a_corpus_without_a_single_image_is_told(labelled: Any, tmp_path: Path, name: str) -> None:
    objects, config = MemoryObjects(), ExportConfig(format=name)
    elsewhere = FolderCorpus(open_objects(str(tmp_path / "elsewhere")))
    with pytest.raises(CorpusError, match=r"none of 13 images are in .*elsewhere.*missing.*--corpus"):
        export_version(labelled.version, config, objects, corpus=elsewhere)
    assert not json.loads(objects.read("export.json"))["finished"]
    report = export_version(labelled.version, config, objects, corpus=labelled.corpus)
    assert report is not None
    assert report.images == 13


def test_an_export_is_made_anew_once_images_that_it_lacks_can_be_had(labelled: Any) -> None:
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


def test_a_server_that_is_away_ends_the_export(labelled: Any) -> None:
    class Away(FolderCorpus):
        def read(self, record: ImageRecord) -> bytes:
            if record.image_id == "no object.png":
                raise TransientError("no answer")
            return super().read(record)

    objects = MemoryObjects()
    corpus = Away(open_objects(str(labelled.folder)))
    with pytest.raises(TransientError):
        export_version(labelled.version, COCO, objects, corpus=corpus)
    assert not json.loads(objects.read("export.json"))["finished"]
    assert "annotations/instances_train.json" not in list_keys(objects)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("place", ["folder", "s3"])
def test_a_killed_export_looks_unfinished_and_is_made_anew(
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


def test_another_export_needs_overwrite_and_leaves_nothing_behind(labelled: Any) -> None:
    objects = MemoryObjects()
    yolo = ExportConfig(format="yolo")
    export_version(labelled.version, yolo, objects, corpus=labelled.corpus)
    with pytest.raises(StoreError, match=r"format is 'yolo' there, 'coco' here.*--overwrite"):
        export_version(labelled.version, COCO, objects)
    cut = replace(COCO, selection=SelectionConfig(min_score=0.3))
    export_version(labelled.version, cut, objects, overwrite=True)
    assert list_keys(objects) == [
        "annotations/instances_train.json", "annotations/instances_val.json", "export.json",
    ]  # fmt: skip


def test_labels_that_were_extended_are_another_export(labelled: Any) -> None:
    objects = MemoryObjects()
    export_version(labelled.version, COCO, objects)
    row = labelled.version.shard(0)[0]
    labelled.version.commit(2, [replace(row, record=replace(row.record, image_id="new"))])
    labelled.version.finish()
    with pytest.raises(StoreError, match="labels is"):
        export_version(labelled.version, COCO, objects)


@pytest.mark.parametrize("manifest", [None, b"{}", b"no json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_export_is_never_touched(labelled: Any, manifest: bytes | None, overwrite: bool) -> None:
    objects = MemoryObjects()
    objects.write("images/holiday.jpg", b"mine")
    if manifest is not None:
        objects.write("export.json", manifest)
    before = contents(objects)
    with pytest.raises(StoreError):
        export_version(labelled.version, COCO, objects, overwrite=overwrite)
    assert contents(objects) == before


def add_images(labelled: Any, files: dict[str, bytes]) -> None:
    """One more shard, of images that are given by name and have the first image's masks."""
    row = labelled.version.shard(0)[0]
    rows = []
    for name, data in files.items():
        (labelled.folder / name).write_bytes(data)
        record = replace(row.record, image_id=name, path=name)
        rows.append(replace(row, record=record, sha256=hashlib.sha256(data).hexdigest()))
    labelled.version.commit(2, rows)


def lying_image() -> tuple[Image.Image, Image.Exif]:
    """White with black upper rows, and the EXIF that turns it a quarter to the left: black at the left."""
    pixels = np.full((40, 24, 3), 255, np.uint8)
    pixels[:10] = 0
    exif = Image.Exif()
    exif[0x0112] = 8
    return Image.fromarray(pixels), exif


def test_images_that_exif_turns_are_stored_upright(
    make_labelled: Callable[..., Any], encode_image: Callable[..., bytes]
) -> None:
    labelled = make_labelled(1)
    image, exif = lying_image()
    files = {
        "turned.jpg": encode_image(image, "JPEG", exif=exif),
        "turned.png": encode_image(image, "PNG", exif=exif),
        "turned.webp": encode_image(image, "WEBP", exif=exif),
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


def test_an_image_that_cannot_be_stored_upright_is_left_out(
    make_labelled: Callable[..., Any], encode_image: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError("encoder error")

    labelled = make_labelled(1)
    image, exif = lying_image()
    add_images(labelled, {"turned.png": encode_image(image, "PNG", exif=exif)})
    monkeypatch.setitem(Image.SAVE, "PNG", refuse)
    report = export_version(labelled.version, COCO, MemoryObjects(), corpus=labelled.corpus)
    assert report is not None
    assert (report.images, report.unavailable) == (2, {"failed": 1})
    assert report.listed == [("turned.png", "failed", "it cannot be stored upright: OSError: encoder error")]


def test_files_are_called_by_their_format_where_their_names_are_silent(
    make_labelled: Callable[..., Any], encode_image: Callable[..., bytes]
) -> None:
    labelled = make_labelled(1)
    image, _ = lying_image()
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
def test_formats_that_hold_images_need_them(labelled: Any, name: str) -> None:
    objects = MemoryObjects()
    with pytest.raises(ConfigurationError, match="--corpus"):
        export_version(labelled.version, ExportConfig(format=name), objects)
    assert list_keys(objects) == []


def test_wrong_settings_are_told() -> None:
    with pytest.raises(ConfigurationError, match="val_fraction"):
        SplitConfig(val_fraction=1)
    with pytest.raises(ConfigurationError, match="--segmentation"):
        ExportConfig(format="yolo", segmentation="polygon")


def test_the_split_is_stable_and_about_right() -> None:
    names = [f"{i}.jpg" for i in range(4000)]
    config = SplitConfig(val_fraction=0.1)
    drawn = is_validation(names, config)
    assert 330 < drawn.sum() < 470
    assert np.array_equal(is_validation(names[1000:], config), drawn[1000:])
    # A larger share holds the smaller one, another seed is another draw.
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
