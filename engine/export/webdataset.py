"""WebDataset: tar files with one sample per image.

    train/000000.tar, val/000000.tar, ...
        <key>.jpg     the image file, with its own suffix
        <key>.json    image_id, path, coco_id, height, width, sha256, and annotations in COCO's format

A key is `safe_name` of the image id. Equal exports have equal bytes: tar members carry no time and no owner.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

from engine.export.batch import ExportBatch
from engine.export.images import safe_name
from engine.export.rolling import MAX_IMAGES, RollingFiles
from engine.export.split import TRAIN, VAL
from engine.objects.object_store import ObjectStore
from engine.store.columns import ShardColumns


class WebDatasetWriter:
    """Writes batches that have files; created by `open_webdataset`."""

    def __init__(self, tars: dict[str, RollingFiles[tarfile.TarFile]]) -> None:
        self._tars = tars

    def add(self, batch: ExportBatch) -> None:
        assert batch.files is not None
        samples = zip(_samples(batch.columns), batch.files, batch.splits, strict=True)
        for sample, file, split in samples:
            text = json.dumps(sample).encode()
            key = safe_name(sample["image_id"])
            tar = self._tars[split].file_for(1, len(file.data) + len(text))
            for suffix, data in ((file.suffix, file.data), (".json", text)):
                member = tarfile.TarInfo(key + suffix)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@contextmanager
def open_webdataset(objects: ObjectStore, max_images: int = MAX_IMAGES) -> Iterator[WebDatasetWriter]:
    """A writer of tars of at most `max_images`; the last ones appear if the block ends without an error."""
    with ExitStack() as stack:
        yield WebDatasetWriter(
            {
                split: stack.enter_context(RollingFiles(objects, split, ".tar", _open_tar, max_images))
                for split in (TRAIN, VAL)
            }
        )


def _open_tar(file: BinaryIO) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT)


def _samples(columns: ShardColumns) -> Iterator[dict[str, Any]]:
    names = ["image_id", "path", "coco_id", "height", "width", "sha256"]
    instances = columns.instances.to_pylist()
    for i, image in enumerate(columns.images.select(names).to_pylist()):
        size = [image["height"], image["width"]]
        own = instances[columns.offsets[i] : columns.offsets[i + 1]]
        yield {**image, "annotations": [_annotation(instance, size) for instance in own]}


def _annotation(instance: dict[str, Any], size: list[int]) -> dict[str, Any]:
    left, top, right, bottom = instance["bbox"]
    return {
        "category_id": 1,
        "bbox": [left, top, right - left, bottom - top],
        "segmentation": {"size": size, "counts": instance["rle"]},
        **{name: instance[name] for name in ("area", "score", "stability", "method")},
    }
