import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from torchvision.datasets import CocoDetection

from engine.export.export import ExportConfig, export_version
from engine.export.split import SplitConfig
from engine.objects.memory import MemoryObjects
from engine.objects.object_store import open_objects
from engine.store.selection import SelectionConfig

CONFIG = ExportConfig(format="coco", split=SplitConfig(val_fraction=0.3))


def read(objects: MemoryObjects, split: str) -> dict[str, Any]:
    return json.loads(objects.read(f"annotations/instances_{split}.json"))


def test_pycocotools_reads_the_same_masks(make_labelled: Callable[..., Any], tmp_path: Path) -> None:
    labelled = make_labelled(12)
    export_version(labelled.version, CONFIG, open_objects(str(tmp_path / "out")))
    seen = []
    annotation_ids: list[int] = []
    for split in ("train", "val"):
        coco = COCO(str(tmp_path / f"out/annotations/instances_{split}.json"))
        assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["object"]
        for image in coco.loadImgs(coco.getImgIds()):
            seen.append(image["corpus_id"])
            masks = labelled.masks[image["corpus_id"]]
            annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
            assert len(annotations) == len(masks)
            for annotation, mask in zip(annotations, masks, strict=True):
                assert np.array_equal(coco.annToMask(annotation), mask)
                rows, columns = np.nonzero(mask)
                left, top = columns.min(), rows.min()
                assert annotation["bbox"] == [left, top, np.ptp(columns) + 1, np.ptp(rows) + 1]
                assert annotation["area"] == mask.sum()
                assert annotation["stability"] is None
                annotation_ids.append(annotation["id"])
    assert sorted(seen) == sorted(labelled.masks)
    assert sorted(annotation_ids) == list(range(1, len(annotation_ids) + 1))


def test_torchvision_reads_copied_images_and_polygons(labelled: Any, tmp_path: Path) -> None:
    config = replace(CONFIG, segmentation="polygon")
    export_version(labelled.version, config, open_objects(str(tmp_path / "out")), corpus=labelled.corpus)
    dataset = CocoDetection(
        str(tmp_path / "out/images"), str(tmp_path / "out/annotations/instances_train.json")
    )
    assert len(dataset) > 5
    for index, number in enumerate(dataset.ids):
        image, annotations = dataset[index]
        info = dataset.coco.loadImgs(number)[0]
        masks = labelled.masks[info["corpus_id"]]
        assert image.size == (info["width"], info["height"]) == (40, 24)
        read = [dataset.coco.annToMask(annotation) for annotation in annotations]
        assert np.array_equal(np.array(read).reshape(masks.shape), masks)
    for path in labelled.folder.iterdir():
        assert (tmp_path / "out/images" / path.name).read_bytes() == path.read_bytes()


def test_image_ids_are_positions_in_the_store_for_any_selection(labelled: Any) -> None:
    numbers = []
    for selection in (SelectionConfig(), SelectionConfig(min_score=0.45)):
        objects = MemoryObjects()
        export_version(labelled.version, replace(CONFIG, selection=selection), objects)
        found = read(objects, "train")["images"] + read(objects, "val")["images"]
        numbers.append({image["corpus_id"]: image["id"] for image in found})
    assert numbers[0] == numbers[1]
    assert numbers[0]["image.0.jpg"] == 1
    assert numbers[0]["no object.png"] == 13


def test_coco_ids_of_the_corpus_are_kept(make_labelled: Callable[..., Any]) -> None:
    objects = MemoryObjects()
    export_version(make_labelled(3, coco_ids=True).version, CONFIG, objects)
    images = read(objects, "train")["images"] + read(objects, "val")["images"]
    assert {image["corpus_id"]: image["id"] for image in images}["image.2.jpg"] == 986
    annotations = read(objects, "train")["annotations"] + read(objects, "val")["annotations"]
    assert {annotation["image_id"] for annotation in annotations} == {1000, 993, 986}


def test_only_selected_instances_are_exported(labelled: Any) -> None:
    objects = MemoryObjects()
    config = replace(CONFIG, selection=SelectionConfig(top_percent=50, max_per_image=1))
    report = export_version(labelled.version, config, objects)
    assert report is not None
    found = read(objects, "train")["annotations"] + read(objects, "val")["annotations"]
    assert len(found) == report.instances == 12
    assert all(annotation["score"] > 0.25 for annotation in found)
    assert report.empty_images == 1


def test_an_empty_split_gets_a_file(labelled: Any) -> None:
    objects = MemoryObjects()
    export_version(labelled.version, replace(CONFIG, split=SplitConfig(val_fraction=0)), objects)
    assert read(objects, "val")["images"] == read(objects, "val")["annotations"] == []
    assert len(read(objects, "train")["images"]) == 13


@pytest.mark.parametrize("character", ["\\", '"', "\n", "☃"])
def test_names_are_escaped(make_labelled: Callable[..., Any], character: str) -> None:
    labelled = make_labelled(1)
    row = labelled.version.shard(0)[0]
    name = f"a{character}b.jpg"
    version = labelled.version
    version.commit(2, [replace(row, record=replace(row.record, image_id=name, path=name))])
    objects = MemoryObjects()
    export_version(version, CONFIG, objects)
    images = read(objects, "train")["images"] + read(objects, "val")["images"]
    assert name in [image["file_name"] for image in images]
