"""YOLO segmentation, as ultralytics and supervision read it.

    data.yaml                                                names both; the other one, where a split is empty
    images/train/<name>.jpg    images/val/<name>.jpg     the images' files
    labels/train/<name>.txt    labels/val/<name>.txt     a line per instance: 0 and its polygon, x y x y ...

A name is `safe_name` of the image id. Coordinates are shares of the width and height, in the convention of
`engine.export.polygons`; there is one class, 0, object. An image without instances has an empty label file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from engine.export.batch import ExportBatch
from engine.export.images import safe_name
from engine.export.polygons import yolo_polygon
from engine.export.split import TRAIN, VAL
from engine.export.writing import write_all
from engine.masks import decode_rles
from engine.store.columns import ShardColumns
from engine.store.objects import ObjectStore


class YoloWriter:
    """Writes batches that have files."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._splits: set[str] = set()

    def add(self, batch: ExportBatch) -> None:
        write_all(self._objects, _named_files(batch))
        self._splits.update(batch.splits)

    def finish(self) -> None:
        """Write data.yaml. Readers stop at a folder that is not there, so an empty split is the other one."""
        there = self._splits or {TRAIN, VAL}
        train, val = TRAIN if TRAIN in there else VAL, VAL if VAL in there else TRAIN
        # Without `path`, readers take the folder that the file lies in.
        text = f"train: images/{train}\nval: images/{val}\nnames:\n  0: object\n"
        self._objects.write("data.yaml", text.encode())


@contextmanager
def open_yolo(objects: ObjectStore) -> Iterator[YoloWriter]:
    """A writer whose data.yaml is there when the block has ended."""
    writer = YoloWriter(objects)
    yield writer
    writer.finish()


def label_texts(columns: ShardColumns) -> Iterator[str]:
    """The label file of each image."""
    rles = columns.instances["rle"].to_pylist()
    for i, (height, width) in enumerate(zip(columns.heights, columns.widths, strict=True)):
        own = rles[columns.offsets[i] : columns.offsets[i + 1]]
        yield "".join(_line(rle.encode(), (int(height), int(width))) for rle in own)


def _line(rle: bytes, size: tuple[int, int]) -> str:
    """One mask at a time is decoded, which for a large photograph is a hundred megabytes."""
    (mask,) = decode_rles([rle], size)
    return " ".join(["0", *(f"{value:.6f}" for value in yolo_polygon(mask).ravel())]) + "\n"


def _named_files(batch: ExportBatch) -> Iterator[tuple[str, bytes]]:
    assert batch.files is not None
    names = map(safe_name, batch.image_ids)
    labels = label_texts(batch.columns)
    for name, split, file, label in zip(names, batch.splits, batch.files, labels, strict=True):
        yield f"labels/{split}/{name}.txt", label.encode()
        yield f"images/{split}/{name}{file.suffix}", file.data
