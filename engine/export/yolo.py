"""YOLO segmentation, as ultralytics and supervision read it.

    data.yaml
    images/train/<name>.jpg    images/val/<name>.jpg     image files
    labels/train/<name>.txt    labels/val/<name>.txt     a line per instance: 0 and its polygon, x y x y ...

A name is `safe_name` of the image id. Coordinates are relative to width and height, in the convention of
`engine.export.polygons`. There is one class: 0, object. An image without instances has an empty label file.
If a split is empty, data.yaml names the other one in its place, since readers fail on a missing folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from engine.export.batch import ExportBatch
from engine.export.images import safe_name
from engine.export.polygons import yolo_polygon
from engine.export.split import TRAIN, VAL
from engine.export.writing import write_all
from engine.masks.rle import decode_rles
from engine.objects.object_store import ObjectStore
from engine.store.columns import ShardColumns


class YoloWriter:
    """Writes batches that have files; created by `open_yolo`. `splits` are those with an image so far."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self.splits: set[str] = set()

    def add(self, batch: ExportBatch) -> None:
        self.splits.update(batch.splits)
        write_all(self._objects, _named_files(batch))


@contextmanager
def open_yolo(objects: ObjectStore) -> Iterator[YoloWriter]:
    """A writer whose data.yaml appears when the block ends without an error."""
    writer = YoloWriter(objects)
    yield writer
    objects.write("data.yaml", data_yaml(writer.splits).encode())


def data_yaml(splits: set[str]) -> str:
    """The data.yaml of a training set with images in these splits.

    >>> print(data_yaml({"train"}), end="")
    train: images/train
    val: images/train
    names:
      0: object
    """
    train, val = (TRAIN if TRAIN in splits else VAL), (VAL if VAL in splits else TRAIN)
    # Without `path`, readers use the folder of data.yaml.
    return f"train: images/{train}\nval: images/{val}\nnames:\n  0: object\n"


def label_texts(columns: ShardColumns) -> Iterator[str]:
    """Yield the text of each image's label file."""
    rles = columns.instances["rle"].to_pylist()
    for i, (height, width) in enumerate(zip(columns.heights, columns.widths, strict=True)):
        own = rles[columns.offsets[i] : columns.offsets[i + 1]]
        yield "".join(_line(rle.encode(), (int(height), int(width))) for rle in own)


def _line(rle: bytes, size: tuple[int, int]) -> str:
    """One instance's line."""
    # One mask at a time: a large photograph's takes a hundred megabytes.
    (mask,) = decode_rles([rle], size)
    return " ".join(["0", *(f"{value:.6f}" for value in yolo_polygon(mask).ravel())]) + "\n"


def _named_files(batch: ExportBatch) -> Iterator[tuple[str, bytes]]:
    assert batch.files is not None
    names = map(safe_name, batch.image_ids)
    labels = label_texts(batch.columns)
    for name, split, file, label in zip(names, batch.splits, batch.files, labels, strict=True):
        yield f"labels/{split}/{name}.txt", label.encode()
        yield f"images/{split}/{name}{file.suffix}", file.data
