"""COCO annotation files, written as a stream.

    annotations/instances_train.json    } images, annotations, and one category: 1, object
    annotations/instances_val.json      }
    images/<path>                       copies, if a corpus is given; otherwise `file_name` is a corpus path

Image ids are the corpus's COCO ids if every image has a unique one; otherwise an id is the image's position
in the store, from 1, rejected images included. In addition to COCO's fields, an image has `corpus_id`, its id
in the store, and an annotation has `score` and `stability` (null until a round has measured it). Boxes are
x, y, width, height. Images without instances are included.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.export.batch import ExportBatch
from engine.export.polygons import coco_polygons
from engine.export.split import TRAIN, VAL
from engine.export.writing import write_all
from engine.masks.rle import decode_rles
from engine.objects.object_store import ObjectStore

Segmentation = Literal["rle", "polygon"]
_HEAD = {
    "info": {"description": "Instance masks found without human labels, by maskmill"},
    "licenses": [],
    "categories": [{"id": 1, "name": "object", "supercategory": "object"}],
}


class CocoWriter:
    """Writes batches; created by `open_coco`."""

    def __init__(
        self, objects: ObjectStore, segmentation: Segmentation, files: dict[str, _SplitFile]
    ) -> None:
        self._objects = objects
        self._segmentation = segmentation
        self._files = files
        self._num_annotations = 0

    def add(self, batch: ExportBatch) -> None:
        for split, file in self._files.items():
            part = batch.part(is_val=split == VAL)
            file.images.add(image_texts(part))
            file.annotations.add(annotation_texts(part, self._num_annotations, self._segmentation))
            self._num_annotations += len(part.columns.areas)
        if batch.files is not None:
            keys = [f"images/{path}" for path in batch.columns.images["path"].to_pylist()]
            write_all(self._objects, zip(keys, (file.data for file in batch.files), strict=True))


@contextmanager
def open_coco(objects: ObjectStore, segmentation: Segmentation) -> Iterator[CocoWriter]:
    """A writer whose annotation files appear when the block ends without an error."""
    with ExitStack() as stack:
        files = {split: stack.enter_context(_open_split(objects, split)) for split in (TRAIN, VAL)}
        yield CocoWriter(objects, segmentation, files)


def image_texts(batch: ExportBatch) -> pa.Array:
    """JSON objects of a batch's images, each preceded by a comma: a string array (N,)."""
    columns = batch.columns
    return _join(
        ',\n{"id":', batch.numbers,
        ',"file_name":', _quoted(columns.images["path"].to_pylist()),
        ',"height":', columns.heights,
        ',"width":', columns.widths,
        ',"corpus_id":', _quoted(batch.image_ids),
        "}",
    )  # fmt: skip


def annotation_texts(batch: ExportBatch, num_before: int, segmentation: Segmentation) -> pa.Array:
    """JSON objects of a batch's instances, each preceded by a comma: a string array (M,).

    Annotation ids continue after `num_before`, the number of annotations written before.
    """
    columns = batch.columns
    image_of_instance = columns.image_of_instance
    left, top, right, bottom = columns.boxes_xyxy.T
    outline: tuple[Any, ...]
    if segmentation == "rle":
        heights, widths = columns.heights[image_of_instance], columns.widths[image_of_instance]
        counts = pc.replace_substring(columns.instances["rle"].combine_chunks(), "\\", "\\\\")
        outline = ('{"size":[', heights, ",", widths, '],"counts":"', counts, '"}')
    else:
        outline = (_polygon_texts(batch),)
    return _join(
        ',\n{"id":', num_before + 1 + np.arange(len(image_of_instance)),
        ',"image_id":', batch.numbers[image_of_instance],
        ',"category_id":1,"iscrowd":0,"area":', columns.areas,
        ',"bbox":[', left, ",", top, ",", right - left, ",", bottom - top,
        '],"score":', _numbers_or_null(columns.scores),
        ',"stability":', _numbers_or_null(columns.stabilities),
        ',"segmentation":', *outline,
        "}",
    )  # fmt: skip


class _SplitFile:
    """The two JSON lists of an annotation file."""

    def __init__(self, annotations: BinaryIO, images: BinaryIO) -> None:
        self.annotations = _JsonList(annotations)
        self.images = _JsonList(images)


class _JsonList:
    """Writes the elements of a JSON list."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._is_empty = True

    def add(self, texts: pa.Array) -> None:
        """Write elements that each begin with a comma and a line break; the very first comma is dropped."""
        if len(texts) > 0:
            # Arrow keeps an array's strings in one buffer, end to end.
            bounds, data = np.frombuffer(texts.buffers()[1], np.int32), memoryview(texts.buffers()[2])
            start, end = bounds[texts.offset], bounds[texts.offset + len(texts)]
            self._file.write(data[start + 1 if self._is_empty else start : end])
            self._is_empty = False


@contextmanager
def _open_split(objects: ObjectStore, split: str) -> Iterator[_SplitFile]:
    """Stream annotations into the file; the short list of images is kept on the local disk meanwhile."""
    with (
        objects.writer(f"annotations/instances_{split}.json") as file,
        tempfile.TemporaryFile() as images,
    ):
        file.write(json.dumps(_HEAD).encode()[:-1] + b',\n"annotations":[')
        yield _SplitFile(file, images)
        file.write(b'\n],\n"images":[')
        images.seek(0)
        shutil.copyfileobj(images, file)
        file.write(b"\n]}\n")


def _join(*pieces: Any) -> pa.Array:
    """Concatenate constants, numbers and strings row by row."""
    columns = [
        piece if isinstance(piece, str | pa.Array) else pc.cast(pa.array(piece), pa.string())
        for piece in pieces
    ]
    joined = pc.binary_join_element_wise(*columns, "")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _quoted(texts: list[str]) -> pa.Array:
    return pa.array(map(json.dumps, texts), pa.string())


def _numbers_or_null(values: Any) -> pa.Array:
    """Format numbers as JSON; non-finite values become null."""
    texts = pc.cast(pa.array(values), pa.string())
    return pc.if_else(pa.array(np.isfinite(values)), texts, "null")


def _polygon_texts(batch: ExportBatch) -> pa.Array:
    columns = batch.columns
    rles = columns.instances["rle"].to_pylist()
    texts = []
    for rle, i in zip(rles, columns.image_of_instance, strict=True):
        (mask,) = decode_rles([rle.encode()], (int(columns.heights[i]), int(columns.widths[i])))
        texts.append(json.dumps([polygon.ravel().tolist() for polygon in coco_polygons(mask)]))
    return pa.array(texts, pa.string())
