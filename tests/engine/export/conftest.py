"""A small store with known masks, and the corpus that it was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.corpora import Corpus, FolderCorpus
from engine.masks.boxes import mask_boxes_xyxy
from engine.masks.instances import Instances
from engine.masks.rle import encode_rles
from engine.objects.memory import MemoryObjects
from engine.objects.object_store import ObjectStore, open_objects
from engine.store.pseudo_labels import PseudoLabelStore, Version
from engine.store.version_info import VersionInfo
from engine.types import ImageRecord, Outcome, Reason, Status

INFO = VersionInfo(round=0, configuration={}, weights_digest="0", parent=None, code_version="1", device="cpu")
SIZE = (24, 40)


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A finished version of a corpus; `masks` are those of each image that was not rejected."""

    version: Version
    corpus: Corpus
    folder: Path
    masks: dict[str, NDArray[np.bool_]]


def make_instances(masks: NDArray[np.bool_], scores: list[float]) -> Instances:
    return Instances(
        size=(masks.shape[1], masks.shape[2]),
        method="promerge",
        rles=encode_rles(masks),
        boxes_xyxy=mask_boxes_xyxy(masks),
        areas=masks.sum(axis=(1, 2)),
        scores=np.array(scores, np.float32),
        stabilities=np.array([np.nan] * len(masks), np.float32),
    )


def known_masks(seed: int) -> NDArray[np.bool_]:
    """A rectangle, a rectangle with a hole and, for every third seed, one pixel; (N, 24, 40)."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((3, *SIZE), bool)
    top, left = rng.integers(0, 8, 2)
    masks[0, top : top + 12, left : left + 9] = True
    masks[1, top + 2 : top + 14, 20:36] = True
    masks[1, top + 5 : top + 9, 25:29] = False
    masks[2, rng.integers(0, 24), rng.integers(0, 40)] = True
    return masks[: 3 if seed % 3 == 0 else 2]


def commit_store(objects: ObjectStore, *shards: list[Outcome]) -> Version:
    version = PseudoLabelStore(objects).begin(INFO, "resume")
    for number, rows in enumerate(shards):
        version.commit(number, rows)
    version.finish()
    return version


@pytest.fixture
def make_labelled(tmp_path: Path, encode_image: Callable[..., bytes]) -> Callable[..., Labelled]:
    """`make_labelled(12)` labels 12 images, followed by one without an object and a rejected one."""

    def make(count: int, coco_ids: bool = False) -> Labelled:
        folder = tmp_path / "images"
        folder.mkdir()
        masks, rows = {}, []
        for seed in range(count):
            name = f"{'ä b' if seed == 1 else 'image'}.{seed}.{'png' if seed % 2 else 'jpg'}"
            masks[name] = known_masks(seed)
            scores = [0.5 - seed / 100, 0.25, 0.125][: len(masks[name])]
            found = make_instances(masks[name], scores)
            rows.append(_write(folder, name, seed, encode_image, found))
        masks["no object.png"] = np.zeros((0, *SIZE), bool)
        rows.append(_write(folder, "no object.png", count, encode_image, None))
        broken = ImageRecord(image_id="broken.png", path="broken.png", coco_id=None)
        rows.append(Outcome(record=broken, status=Status.REJECTED, reason=Reason.TRUNCATED))
        if coco_ids:
            rows = [_with_coco_id(row, 1000 - 7 * i) for i, row in enumerate(rows)]
        half = len(rows) // 2
        version = commit_store(MemoryObjects(), rows[:half], rows[half:])
        return Labelled(
            version=version, corpus=FolderCorpus(open_objects(str(folder))), folder=folder, masks=masks
        )

    return make


@pytest.fixture
def labelled(make_labelled: Callable[..., Labelled]) -> Labelled:
    return make_labelled(12)


def _write(
    folder: Path, name: str, seed: int, encode_image: Callable[..., bytes], found: Instances | None
) -> Outcome:
    image = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)
    data = encode_image(image, "JPEG" if name.endswith("jpg") else "PNG")
    (folder / name).write_bytes(data)
    return Outcome(
        record=ImageRecord(image_id=name, path=name),
        status=Status.LABELLED if found is not None else Status.NO_OBJECT,
        reason=None if found is not None else Reason.NO_FOREGROUND,
        height=SIZE[0],
        width=SIZE[1],
        sha256=hashlib.sha256(data).hexdigest(),
        instances=found,
    )


def _with_coco_id(row: Outcome, coco_id: int) -> Outcome:
    return replace(row, record=replace(row.record, coco_id=coco_id))
