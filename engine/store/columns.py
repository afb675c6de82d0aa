"""Shards as flat Arrow columns, for readers of more rows than Python objects are fast enough for.

`Version.outcomes` makes an object of every row and checks the rows' digest, which is too slow where a million
rows are counted or exported. Here a shard stays as Parquet holds it: columns of its images, and columns of
the instances of all its images, concatenated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engine.errors import StoreError
from engine.store.checks import DAMAGE_ERRORS, changed_rows, check_scores, check_shard
from engine.store.schema import read_footer

InstanceColumn = Literal["score", "stability"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardColumns:
    """The N images of a shard and their M instances.

    `images` is a table of N rows with the columns of engine.store.schema except `instances`; `instances` is a
    table of M rows with the fields of an instance. `offsets` is int64 (N + 1,): image i has the instances
    offsets[i] to offsets[i + 1], best first.
    """

    shard: int
    images: pa.Table
    instances: pa.Table
    offsets: NDArray[np.int64]

    @property
    def num_images(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of instances of each image, (N,)."""
        return np.diff(self.offsets)

    @property
    def image_of_instance(self) -> NDArray[np.int64]:
        """Index of the image of each instance, (M,)."""
        return np.repeat(np.arange(self.num_images), self.counts)

    @cached_property
    def heights(self) -> NDArray[np.int32]:
        """Pixels, (N,); 0 if the image was rejected before its size was known."""
        return _filled(self.images["height"], 0, np.int32)

    @cached_property
    def widths(self) -> NDArray[np.int32]:
        """Pixels, (N,); 0 if the image was rejected before its size was known."""
        return _filled(self.images["width"], 0, np.int32)

    @cached_property
    def boxes_xyxy(self) -> NDArray[np.int32]:
        """Half-open pixels, (M, 4)."""
        boxes = self.instances["bbox"].combine_chunks()
        return _filled(boxes.flatten(), 0, np.int32).reshape(-1, 4)

    @cached_property
    def areas(self) -> NDArray[np.int64]:
        """Pixels, (M,)."""
        return _filled(self.instances["area"], 0, np.int64)

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """R(M) of each instance, (M,)."""
        return _filled(self.instances["score"], np.nan, np.float32)

    @cached_property
    def stabilities(self) -> NDArray[np.float32]:
        """Holistic stability Z of each instance, (M,); NaN if no round has measured it."""
        return _filled(self.instances["stability"], np.nan, np.float32)

    def keep_instances(self, is_kept: NDArray[np.bool_]) -> ShardColumns:
        """All images, with the instances where `is_kept`, bool (M,), is true."""
        kept_before = np.concatenate(([0], np.cumsum(is_kept)))
        return ShardColumns(
            shard=self.shard,
            images=self.images,
            instances=self.instances.filter(pa.array(is_kept)),
            offsets=kept_before[self.offsets],
        )

    def keep_images(self, is_kept: NDArray[np.bool_]) -> ShardColumns:
        """The images where `is_kept`, bool (N,), is true, with their instances."""
        return ShardColumns(
            shard=self.shard,
            images=self.images.filter(pa.array(is_kept)),
            instances=self.instances.filter(pa.array(is_kept[self.image_of_instance])),
            offsets=np.concatenate(([0], np.cumsum(self.counts[is_kept]))),
        )


def decode_columns(data: bytes, name: str) -> ShardColumns:
    """Decode a shard file into columns; errors call it `name`. Raises StoreError.

    Damaged bytes are found by Parquet's page checksums, impossible values by `check_shard`. The digest of the
    rows, which `Version.shard` checks, costs ten times as much as everything here.
    """
    file, footer = _open(data, name)
    table = _read(file, None, name)
    check_shard(table, footer, name)
    lists = table["instances"].combine_chunks()
    # The array may be a slice whose values hold more than its own: flatten() drops the rest, and offsets
    # are shifted to begin at 0.
    values = lists.flatten()
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return ShardColumns(
        shard=footer["shard"],
        images=table.drop_columns(["instances"]),
        instances=pa.Table.from_struct_array(values),
        offsets=offsets - offsets[0],
    )


def decode_instance_column(data: bytes, column: InstanceColumn, name: str) -> NDArray[np.float32]:
    """Read one column of a shard's instances, float32 (M,), NaN for null. Raises StoreError."""
    file, footer = _open(data, name)
    table = _read(file, [f"instances.list.element.{column}"], name)
    try:
        lists = table["instances"].combine_chunks()
        lists.validate(full=True)
        scores = lists.flatten().field(column)
        check_scores(scores, footer["instances"])
    except DAMAGE_ERRORS as error:
        raise changed_rows(name, error) from error
    return _filled(scores, np.nan, np.float32)


def _open(data: bytes, name: str) -> tuple[pq.ParquetFile, dict[str, Any]]:
    """The file and its footer."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        file_schema = file.schema_arrow
    except DAMAGE_ERRORS as error:
        raise StoreError(f"{name} is not a file of this store ({error}); remove it and run again") from error
    return file, read_footer(file_schema, name)


def _read(file: pq.ParquetFile, columns: list[str] | None, name: str) -> pa.Table:
    try:
        return file.read(columns=columns, use_threads=False)
    except DAMAGE_ERRORS as error:
        raise StoreError(f"{name} is damaged ({error}); restore the file or label again") from error


def _filled(column: pa.Array | pa.ChunkedArray, null: float, dtype: type[np.generic]) -> NDArray[Any]:
    """A numeric column as a numpy array, with nulls replaced by `null`."""
    filled = column.fill_null(pa.scalar(null, column.type)) if column.null_count else column
    return np.asarray(
        filled.to_numpy(zero_copy_only=False) if isinstance(filled, pa.Array) else filled.to_numpy(), dtype
    )
