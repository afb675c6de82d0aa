"""Checks of a shard's values, for all readers, before native code such as pycocotools sees them.

Bytes that changed on a disk are found by Parquet's checksums, rows that changed by the digest of the rows. A
reader of columns does not compute that digest, which is slow, and a program that rewrote the rows may have
written another: neither may crash a reader.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from engine.errors import StoreError
from engine.masks.rle import check_counts
from engine.types import Reason, Status

# Run lengths are 32-bit numbers.
_MAX_PIXELS = 2**31 - 1
# What pyarrow raises for damaged files: names that are no text raise a ValueError.
DAMAGE_ERRORS = (pa.ArrowException, OSError, KeyError, TypeError, ValueError)
_IMAGE_COLUMNS = {
    "image_id": pa.string(), "coco_id": pa.int64(), "path": pa.string(), "height": pa.int32(),
    "width": pa.int32(), "sha256": pa.string(), "status": pa.string(), "reason": pa.string(),
    "detail": pa.string(),
}  # fmt: skip
_INSTANCE_COLUMNS = {
    "rle": pa.string(), "area": pa.int64(), "score": pa.float32(), "method": pa.string(),
    "stability": pa.float32(),
}  # fmt: skip


def check_shard(table: pa.Table, footer: dict[str, Any], name: str) -> None:
    """Raise StoreError if a shard's values are not such as a label job writes; the error calls it `name`."""
    try:
        table.validate(full=True)
        _check(table, footer)
    except DAMAGE_ERRORS as error:
        raise changed_rows(name, error) from error


def changed_rows(name: str, error: Exception | str) -> StoreError:
    """The error of a shard whose rows another program has changed."""
    return StoreError(
        f"{name}: the rows are not those that were written ({error}); restore the file or label again"
    )


def check_scores(scores: pa.Array, num_instances: object) -> None:
    """Raise ValueError for scores, or stabilities, that are infinite or not `num_instances` in number."""
    if len(scores) != num_instances:
        raise ValueError(f"{len(scores)} instances, the footer states {num_instances}")
    if np.isinf(scores.fill_null(0).to_numpy(zero_copy_only=False)).any():
        raise ValueError("a score is infinite")


def _check(table: pa.Table, footer: dict[str, Any]) -> None:
    _check_types(table, _IMAGE_COLUMNS, nullable=("coco_id", "height", "width", "sha256", "reason"))
    lists = table["instances"].combine_chunks()
    if lists.null_count:
        raise ValueError("an image has a null instead of instances")
    instances = pa.Table.from_struct_array(lists.flatten())
    _check_types(instances, _INSTANCE_COLUMNS, nullable=("stability",))
    _check_images(table, footer)
    image_of_instance = np.repeat(np.arange(table.num_rows), lists.value_lengths().to_numpy())
    sizes = [table[side].fill_null(0).to_numpy().astype(np.int64) for side in ("height", "width")]
    _check_instances(instances, sizes[0][image_of_instance], sizes[1][image_of_instance])
    check_scores(instances["stability"].combine_chunks(), footer["instances"])


def _check_types(table: pa.Table, types: dict[str, pa.DataType], nullable: tuple[str, ...]) -> None:
    for column, kind in types.items():
        if table[column].type != kind:
            raise TypeError(f"the column {column} is {table[column].type}, not {kind}")
        if table[column].null_count and column not in nullable:
            raise ValueError(f"the column {column} has a null")


def _check_images(images: pa.Table, footer: dict[str, Any]) -> None:
    if images.num_rows != footer["images"]:
        raise ValueError(f"{images.num_rows} images, the footer states {footer['images']}")
    if pc.count_distinct(images["image_id"]).as_py() != images.num_rows:
        raise ValueError("an image id is there twice")
    for status in set(images["status"].to_pylist()) | set(Status):
        count = pc.sum(pc.equal(images["status"], Status(status).value)).as_py() or 0
        if count != footer[status]:
            raise ValueError(f"{count} images are {status}, the footer states {footer[status]}")
    for reason in set(images["reason"].drop_null().to_pylist()):
        Reason(reason)
    for side in ("height", "width"):
        lengths = images[side].drop_null().to_numpy()
        if (lengths < 1).any():
            raise ValueError(f"a {side} is {lengths.min()}")


def _check_instances(instances: pa.Table, heights: NDArray[np.int64], widths: NDArray[np.int64]) -> None:
    """Check M instances in images of `heights` and `widths`, (M,) each."""
    if len(instances) == 0:
        return
    pixels = heights * widths
    if pixels.min() < 1 or pixels.max() > _MAX_PIXELS:
        raise ValueError("an image with instances has no size, or a larger one than masks can have")
    boxes = _boxes(instances["bbox"].combine_chunks())
    is_inside = (boxes[:, :2] >= 0) & (boxes[:, :2] <= boxes[:, 2:])
    is_inside &= boxes[:, 2:] <= np.stack([widths, heights], axis=1)
    if not is_inside.all():
        raise ValueError("a box is not within its image")
    areas = instances["area"].to_numpy()
    if areas.min() < 0 or (areas > pixels).any():
        raise ValueError("an area is negative or larger than its image")
    if not np.isfinite(instances["score"].to_numpy()).all():
        raise ValueError("a score is not a finite number")
    rles = instances["rle"].to_pylist()
    offsets = np.concatenate(([0], np.cumsum([len(rle) for rle in rles])))
    check_counts(np.frombuffer("".join(rles).encode("ascii"), np.uint8), offsets, pixels)


def _boxes(column: pa.Array) -> NDArray[np.int32]:
    values = column.flatten()
    if column.type != pa.list_(pa.int32(), 4) or column.null_count or values.null_count:
        raise TypeError("a box is not four whole numbers")
    boxes: NDArray[np.int32] = values.to_numpy().reshape(-1, 4)
    return boxes
