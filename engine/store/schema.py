"""The Parquet schemas of shards, plans and manifests, and their encoding; a shard has one row per image.

Columns of a shard:

    image_id   the image's name in its corpus, unique
    coco_id    its number in a COCO-like corpus, or null
    path       relative to the corpus root
    height     } of the upright image in pixels, or null if the image was rejected before they were known
    width      }
    sha256     of the file's bytes, hex, or null
    status     labelled, no_object or rejected
    reason     a code of engine.types.Reason, or null if labelled
    detail     an explanation in words, or empty
    objective  } of the image's partition, null if the method computes none; shards of early versions lack
    gap        } both columns
    instances  best first: rle (COCO's compressed counts for height x width), bbox (x0, y0, x1, y1 half-open
               pixels), area (pixels), score (R(M)), method, stability (null until a round has measured it)

The footer's entry `maskmill` is JSON: format, version, shard, digest (sha256 of the rows) and counts.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import StoreError
from engine.store.checks import DAMAGE_ERRORS, changed_rows, check_shard
from engine.store.rows import outcome_row, record_row, row_outcome, row_record
from engine.types import Outcome, ShardPlan, Status

FORMAT = 1
_FOOTER_KEY = b"maskmill"
_PARQUET_MAGIC = b"PAR1"
# Bytes at a file's end that are read first; most footers fit.
_TAIL_BYTES = 1 << 16

_INSTANCE = pa.struct(
    [
        pa.field("rle", pa.string(), nullable=False),
        pa.field("bbox", pa.list_(pa.int32(), 4), nullable=False),
        pa.field("area", pa.int64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("stability", pa.float32()),
    ]
)
_RECORD_FIELDS = [
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("coco_id", pa.int64()),
    pa.field("path", pa.string(), nullable=False),
]
PLAN_SCHEMA = pa.schema(_RECORD_FIELDS)
SHARD_SCHEMA = pa.schema(
    [
        *_RECORD_FIELDS,
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("sha256", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("objective", pa.float64()),
        pa.field("gap", pa.float64()),
        pa.field("instances", pa.list_(pa.field("item", _INSTANCE, nullable=False)), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ShardSummary:
    """A shard's number, the digest of its rows, and counts, as its footer states them."""

    shard: int
    digest: str
    images: int
    labelled: int
    no_object: int
    rejected: int
    instances: int
    reasons: dict[str, int]
    first_image_id: str
    last_image_id: str
    """The smallest and the largest image id of the shard, ordered by code points."""


def encode_shard(version: str, shard: int, outcomes: Sequence[Outcome]) -> bytes:
    """Encode a shard file with one row per outcome, in this order."""
    rows = [outcome_row(outcome) for outcome in outcomes]
    statuses = Counter(outcome.status for outcome in outcomes)
    footer = {
        "format": FORMAT,
        "version": version,
        "shard": shard,
        "digest": _digest(rows),
        "images": len(outcomes),
        "labelled": statuses[Status.LABELLED],
        "no_object": statuses[Status.NO_OBJECT],
        "rejected": statuses[Status.REJECTED],
        "instances": sum(len(outcome.instances or ()) for outcome in outcomes),
        "reasons": dict(sorted(Counter(o.reason for o in outcomes if o.reason is not None).items())),
        "first_image_id": min(outcome.record.image_id for outcome in outcomes),
        "last_image_id": max(outcome.record.image_id for outcome in outcomes),
    }
    return _encode(pa.Table.from_pylist(rows, SHARD_SCHEMA), footer)


def decode_shard(data: bytes, name: str) -> tuple[ShardSummary, list[Outcome]]:
    """Decode the summary and the rows of a shard file; errors call it `name`. Raises StoreError."""
    table, footer = _decode(data, name)
    check_shard(table, footer, name)
    rows = table.to_pylist()
    if _digest(rows) != footer.get("digest"):
        raise changed_rows(name, "another digest")
    return _summary(footer, name), [row_outcome(row) for row in rows]


def read_summary(
    read_range: Callable[[int, int], bytes], size: int, name: str, tail_bytes: int = _TAIL_BYTES
) -> ShardSummary:
    """Read the summary of a shard file of `size` bytes from its end; errors call it `name`.

    `read_range(start, size)` reads a part of the file. `tail_bytes` are read first, and the rest of the
    footer if it is longer. Raises StoreError.
    """
    start = max(size - tail_bytes, 0)
    tail = read_range(start, size - start)
    # Parquet ends with its metadata, their length in 4 bytes, and the same 4 letters that it begins with.
    needed = int.from_bytes(tail[-8:-4], "little") + 8
    if len(tail) < needed <= size:
        tail = read_range(size - needed, needed)
    try:
        schema = pq.read_schema(pa.BufferReader(_PARQUET_MAGIC + tail[-needed:]))
    except DAMAGE_ERRORS as error:
        raise _foreign_file(name, error) from error
    return _summary(read_footer(schema, name), name)


def read_footer(schema: pa.Schema, name: str) -> dict[str, Any]:
    """The JSON object in the footer of a file. Raises StoreError if the file is not one of this store."""
    try:
        footer: dict[str, Any] = json.loads((schema.metadata or {})[_FOOTER_KEY])
        file_format = footer["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign_file(name, error) from error
    if file_format != FORMAT:
        raise StoreError(f"{name} has format {file_format}; this version of maskmill reads format {FORMAT}")
    return footer


def encode_plan(plan: ShardPlan) -> bytes:
    """Encode a plan file: the images of a shard."""
    rows = [record_row(record) for record in plan.records]
    table = pa.Table.from_pylist(rows, PLAN_SCHEMA)
    return _encode(table, {"format": FORMAT, "shard": plan.index, "is_last": plan.is_last})


def decode_plan(data: bytes, name: str) -> ShardPlan:
    """Decode a plan file; errors call it `name`. Raises StoreError."""
    table, footer = _decode(data, name)
    records = tuple(row_record(row) for row in table.to_pylist())
    return ShardPlan(index=footer["shard"], records=records, is_last=footer["is_last"])


def encode_manifest(summaries: Sequence[ShardSummary]) -> bytes:
    """Encode the manifest of a finished version: one row per shard."""
    rows = [{**vars(summary), "reasons": json.dumps(summary.reasons)} for summary in summaries]
    return _encode(pa.Table.from_pylist(rows), {"format": FORMAT})


def decode_manifest(data: bytes, name: str) -> list[ShardSummary]:
    """Decode a manifest; errors call it `name`. Raises StoreError."""
    table, _ = _decode(data, name)
    return [ShardSummary(**{**row, "reasons": json.loads(row["reasons"])}) for row in table.to_pylist()]


def _encode(table: pa.Table, footer: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    metadata = {_FOOTER_KEY: json.dumps(footer, sort_keys=True).encode()}
    table = table.replace_schema_metadata(metadata)
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _decode(data: bytes, name: str) -> tuple[pa.Table, dict[str, Any]]:
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    except DAMAGE_ERRORS as error:
        raise _foreign_file(name, error) from error
    return table, read_footer(table.schema, name)


def _foreign_file(name: str, error: Exception) -> StoreError:
    # A plan cannot be reconstructed; everything else can.
    remedy = "label again with --overwrite" if "/plan/" in name else "remove it and run the label job again"
    return StoreError(f"{name} is damaged, or not a file of this store ({error}): restore it, or {remedy}")


def _digest(rows: Sequence[dict[str, Any]]) -> str:
    """sha256 of rows as JSON, which does not depend on the file's encoding and compression."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def _summary(footer: dict[str, Any], name: str) -> ShardSummary:
    try:
        return ShardSummary(**{field: footer[field] for field in ShardSummary.__dataclass_fields__})
    except KeyError as error:
        raise changed_rows(name, error) from error
