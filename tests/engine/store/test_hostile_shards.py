"""Shards whose rows or bytes were changed: every reader refuses them in one line, or reads them."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.corpora import FolderCorpus
from engine.errors import StoreError, UsageError
from engine.export.export import ExportConfig, export_version
from engine.masks.rle import check_counts, check_lengths, decode_counts
from engine.objects.local import LocalObjects
from engine.objects.memory import MemoryObjects
from engine.report.page import build_report
from engine.store import schema
from engine.store.pseudo_labels import PseudoLabelStore, Version
from engine.store.selection import SelectionConfig, plan_selection

NUMBERS = st.sampled_from([-(2**31), -7, -1, 0, 1, 2**15, 2**31 - 1])
FLOATS = st.sampled_from([float("nan"), float("inf"), -float("inf"), -0.5, 1e30])
TEXTS = st.sampled_from(["", "0", "o", "0o", "123456", "\x7f", "ö", "P" * 9, "00000000", "no such"])
VALUES = {
    "height": NUMBERS | st.none(), "width": NUMBERS | st.none(), "coco_id": NUMBERS | st.none(),
    "status": TEXTS | st.sampled_from(["labelled", "rejected"]), "reason": TEXTS | st.none(),
    "image_id": TEXTS | st.just("1.png"), "path": TEXTS, "sha256": TEXTS | st.none(), "detail": TEXTS,
    "instances": st.just([]), "rle": TEXTS, "area": NUMBERS, "score": FLOATS, "stability": FLOATS,
    "bbox": st.lists(NUMBERS, min_size=4, max_size=4), "method": TEXTS,
}  # fmt: skip
CHANGES = st.sampled_from(sorted(VALUES)).flatmap(
    lambda column: st.tuples(st.just(column), st.integers(0, 8), VALUES[column])
)


def read_everything(store: PseudoLabelStore, corpus: FolderCorpus) -> Iterator[Callable[[], Any]]:
    version = store.version()
    yield lambda: list(version.outcomes())
    yield lambda: build_report(store, version, corpus)
    yield lambda: plan_selection(version, SelectionConfig(top_percent=50, min_stability=0.0))
    configs = [
        ExportConfig(format="coco"), ExportConfig(format="coco", segmentation="polygon"),
        ExportConfig(format="yolo"), ExportConfig(format="webdataset"), ExportConfig(format="parquet"),
    ]  # fmt: skip
    for config in configs:
        yield lambda config=config: export_version(version, config, MemoryObjects(), corpus=corpus)


def refuse_or_read(store: PseudoLabelStore, corpus: FolderCorpus) -> None:
    """Let every reader read or refuse the store; an error of another kind fails the test."""
    for read in read_everything(store, corpus):
        with suppress(UsageError):
            read()


def shard_of(labels: Path) -> tuple[Version, Path]:
    version = PseudoLabelStore(LocalObjects(labels)).version()
    return version, labels / version.name / "shard-000000.parquet"


def rewrite(path: Path, changes: list[tuple[str, int, Any]], makes_digest: bool) -> None:
    """Change values of a shard as another program could, with its footer kept or adapted."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    for column, number, value in changes:
        row = rows[number % len(rows)]
        if column in row:
            row[column] = value
        else:
            for item in row["instances"]:
                item[column] = value
    footer = json.loads(table.schema.metadata[b"maskmill"])
    if makes_digest:
        footer["digest"] = schema._digest(rows)
        footer["instances"] = sum(len(row["instances"]) for row in rows)
    changed = pa.Table.from_pylist(rows, table.schema)
    pq.write_table(changed.replace_schema_metadata({b"maskmill": json.dumps(footer).encode()}), path)


@pytest.mark.parametrize("makes_digest", [False, True])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(CHANGES, min_size=1, max_size=2))
def test_changed_rows_crash_no_reader(
    labelled_discs: tuple[Path, Path], changes: list[tuple[str, int, Any]], makes_digest: bool
) -> None:
    images, labels = labelled_discs
    _, path = shard_of(labels)
    whole = path.read_bytes()
    try:
        rewrite(path, changes, makes_digest)
        refuse_or_read(PseudoLabelStore(LocalObjects(labels)), FolderCorpus.open(str(images)))
    finally:
        path.write_bytes(whole)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1), mask=st.integers(1, 255), cuts=st.booleans())
def test_changed_bytes_crash_no_reader(
    labelled_discs: tuple[Path, Path], share: float, mask: int, cuts: bool
) -> None:
    images, labels = labelled_discs
    _, path = shard_of(labels)
    whole = path.read_bytes()
    position = min(int(share * len(whole)), len(whole) - 1)
    changed = b"" if cuts else bytes([whole[position] ^ mask]) + whole[position + 1 :]
    try:
        path.write_bytes(whole[:position] + changed)
        refuse_or_read(PseudoLabelStore(LocalObjects(labels)), FolderCorpus.open(str(images)))
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "change",
    [
        ("height", 1, -5), ("width", 1, 2**31 - 1), ("height", 1, None), ("rle", 1, "0"), ("rle", 1, "ö"),
        ("bbox", 1, [-1, 0, 3, 3]), ("bbox", 1, [0, 0, 65, 3]), ("bbox", 1, [9, 0, 3, 3]), ("area", 1, -1),
        ("score", 1, float("nan")), ("stability", 1, float("inf")), ("image_id", 1, "0.png"),
        ("status", 1, "no such"), ("reason", 2, "no such"),
    ],
)  # fmt: skip
def test_impossible_values_are_refused_by_every_reader_of_rows_and_columns(
    labelled_discs: tuple[Path, Path], change: tuple[str, int, Any]
) -> None:
    version, path = shard_of(labelled_discs[1])
    assert len(list(version.columns())) == 1
    rewrite(path, [change], makes_digest=True)
    for read in (version.columns, version.outcomes):
        with pytest.raises(StoreError, match="not those that were written"):
            list(read())


@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=9), min_size=1, max_size=5))
def test_counts_are_checked_together_as_one_by_one(lengths: list[list[int]]) -> None:
    counts = [_compressed(of_mask) for of_mask in lengths]
    for one, of_mask in zip(counts, lengths, strict=True):
        assert decode_counts(one).tolist() == of_mask
        check_lengths(decode_counts(one), (sum(of_mask), 1))
    text = np.frombuffer(b"".join(counts), np.uint8)
    offsets = np.cumsum([0, *map(len, counts)])
    pixels = np.array([sum(of_mask) for of_mask in lengths])
    check_counts(text, offsets, pixels)
    with pytest.raises(ValueError, match="do not add up"):
        check_counts(text, offsets, pixels + (np.arange(len(pixels)) == 0))


def _compressed(lengths: list[int]) -> bytes:
    """Compressed counts, digit by digit."""
    sink = io.BytesIO()
    for i, length in enumerate(lengths):
        number, has_more = length - (lengths[i - 2] if i > 2 else 0), True
        while has_more:
            digit, number = number & 31, number >> 5
            has_more = number != (-1 if digit & 16 else 0)
            sink.write(bytes([48 + digit + 32 * has_more]))
    return sink.getvalue()
