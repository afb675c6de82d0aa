"""Parquet files with one row per image.

    train/000000.parquet, val/000000.parquet, ...

Columns from the store's shards (engine.store.schema): image_id, coco_id, path, height, width, sha256, status,
reason, and `instances` (the selected ones). Additional columns: `number` (the image's id in a COCO export),
`split`, and, if images are copied, `image`, a struct of `bytes` and `path`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.export.batch import ExportBatch
from engine.export.rolling import MAX_IMAGES, RollingFiles
from engine.export.split import TRAIN, VAL
from engine.objects.object_store import ObjectStore
from engine.store.schema import SHARD_SCHEMA

_STORED = ("image_id", "coco_id", "path", "height", "width", "sha256", "status", "reason")
_IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])


class ParquetWriter:
    """Writes batches; created by `open_parquet`."""

    def __init__(self, files: dict[str, RollingFiles[pq.ParquetWriter]]) -> None:
        self._files = files

    def add(self, batch: ExportBatch) -> None:
        table = export_table(batch)
        for split, files in self._files.items():
            rows = table.filter(pa.array(batch.is_val == (split == VAL)))
            if rows.num_rows > 0:
                files.file_for(rows.num_rows, rows.nbytes).write_table(rows)


@contextmanager
def open_parquet(
    objects: ObjectStore, has_images: bool, max_images: int = MAX_IMAGES
) -> Iterator[ParquetWriter]:
    """A writer of files of at most `max_images`; the last ones appear if the block ends without an error."""
    schema = export_schema(has_images)

    def open_file(file: BinaryIO) -> pq.ParquetWriter:
        return pq.ParquetWriter(pa.PythonFile(file, mode="w"), schema, compression="zstd")

    with ExitStack() as stack:
        yield ParquetWriter(
            {
                split: stack.enter_context(RollingFiles(objects, split, ".parquet", open_file, max_images))
                for split in (TRAIN, VAL)
            }
        )


def export_schema(has_images: bool) -> pa.Schema:
    """The schema of a file, with or without the column `image`."""
    return pa.schema(
        [
            *(SHARD_SCHEMA.field(name) for name in _STORED),
            SHARD_SCHEMA.field("instances"),
            pa.field("number", pa.int64(), nullable=False),
            pa.field("split", pa.string(), nullable=False),
            *([pa.field("image", _IMAGE, nullable=False)] if has_images else []),
        ]
    )


def export_table(batch: ExportBatch) -> pa.Table:
    """A batch as a table of `export_schema`."""
    columns = batch.columns
    schema = export_schema(batch.files is not None)
    instances = pa.ListArray.from_arrays(
        pa.array(columns.offsets.astype(np.int32)),
        columns.instances.to_struct_array().combine_chunks(),
        type=schema.field("instances").type,
    )
    arrays = [
        *(columns.images[name] for name in _STORED),
        instances,
        pa.array(batch.numbers),
        pa.array(batch.splits, pa.string()),
    ]
    if batch.files is not None:
        paths = columns.images["path"].to_pylist()
        files = zip(batch.files, paths, strict=True)
        arrays.append(pa.array([{"bytes": file.data, "path": path} for file, path in files], _IMAGE))
    return pa.Table.from_arrays(arrays, schema=schema)
