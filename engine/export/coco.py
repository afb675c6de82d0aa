"""COCO's annotation files, written as they stream by.

    annotations/instances_train.json    } images, annotations, and one category: 1, object
    annotations/instances_val.json      }
    images/<path>                       copies, if asked for; without, `file_name` is relative to the corpus

An image's id is the number that its corpus gives it where every image has one of its own, and elsewhere its
position in the store, from 1, rejected images counted. Beside COCO's own fields an image carries `corpus_id`,
its id in the store, and an annotation `score` and `stability` (null where no round has measured it). Boxes
are x, y, width, height. Images without instances are listed.
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
    """Writes batches; made by `open_coco`."""

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
    """A writer whose annotation files are there once the block has ended well, and not before."""
    with ExitStack() as stack:
        files = {split: stack.enter_context(_open_split(objects, split)) for split in (TRAIN, VAL)}
        yield CocoWriter(objects, segmentation, files)


def image_texts(batch: ExportBatch) -> pa.Array:
    """The JSON objects of a batch's images, each behind a comma: a string array (N,)."""
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
    """The JSON objects of a batch's instances, each behind a comma: a string array (M,).

    Annotations are numbered on from `num_before`, the first of all being 1.
    """
    columns = batch.columns
    owners = columns.image_of_instance
    left, top, right, bottom = columns.boxes_xyxy.T
    outline: tuple[Any, ...]
    sizes = (columns.heights[owners], columns.widths[owners])
    if segmentation == "rle":
        counts = pc.replace_substring(columns.instances["rle"].combine_chunks(), "\\", "\\\\")
        outline = ('{"size":[', sizes[0], ",", sizes[1], '],"counts":"', counts, '"}')
    else:
        outline = (_polygon_texts(batch),)
    return _join(
        ',\n{"id":', num_before + 1 + np.arange(len(owners)),
        ',"image_id":', batch.numbers[owners],
        ',"category_id":1,"iscrowd":0,"area":', columns.areas,
        ',"bbox":[', left, ",", top, ",", right - left, ",", bottom - top,
        '],"score":', _numbers_or_null(columns.scores),
        ',"stability":', _numbers_or_null(columns.stabilities),
        ',"segmentation":', *outline,
        "}",
    )  # fmt: skip


class _SplitFile:
    """The two lists of an annotation file."""

    def __init__(self, annotations: BinaryIO, images: BinaryIO) -> None:
        self.annotations = _JsonList(annotations)
        self.images = _JsonList(images)


class _JsonList:
    """The elements of a JSON list, of which the first stands behind no comma."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._is_empty = True

    def add(self, texts: pa.Array) -> None:
        """Write texts that each begin with a comma and an end of line."""
        if len(texts) > 0:
            # The bytes of an array's strings lie one after the other.
            bounds, data = np.frombuffer(texts.buffers()[1], np.int32), memoryview(texts.buffers()[2])
            start, end = bounds[texts.offset], bounds[texts.offset + len(texts)]
            self._file.write(data[start + 1 if self._is_empty else start : end])
            self._is_empty = False


@contextmanager
def _open_split(objects: ObjectStore, split: str) -> Iterator[_SplitFile]:
    """Annotations go straight into the file; images, which are short, wait on the local disk."""
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
    """Rows of text: constants, numbers and strings one after the other."""
    columns = [
        piece if isinstance(piece, str | pa.Array) else pc.cast(pa.array(piece), pa.string())
        for piece in pieces
    ]
    joined = pc.binary_join_element_wise(*columns, "")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _quoted(texts: list[str]) -> pa.Array:
    return pa.array(map(json.dumps, texts), pa.string())


def _numbers_or_null(values: Any) -> pa.Array:
    """Numbers as JSON writes them; what is not finite has no other way than null."""
    texts = pc.cast(pa.array(values), pa.string())
    return pc.if_else(pa.array(np.isfinite(values)), texts, "null")


def _polygon_texts(batch: ExportBatch) -> pa.Array:
    columns = batch.columns
    rles = columns.instances["rle"].to_pylist()
    texts = []
    for rle, owner in zip(rles, columns.image_of_instance, strict=True):
        (mask,) = decode_rles([rle.encode()], (int(columns.heights[owner]), int(columns.widths[owner])))
        texts.append(json.dumps([polygon.ravel().tolist() for polygon in coco_polygons(mask)]))
    return pa.array(texts, pa.string())
