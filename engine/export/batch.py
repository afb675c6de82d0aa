"""Batches for the writers: shards with instances selected, images numbered and split, and image files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from engine.corpora import Corpus
from engine.errors import ImageError
from engine.export.images import ImageFile, read_image_files
from engine.export.split import TRAIN, VAL, SplitConfig, is_validation
from engine.store.columns import ShardColumns
from engine.store.pseudo_labels import Version
from engine.store.selection import Selection, select_columns
from engine.types import ImageRecord, Status

# Image files in memory at a time, and threads that read them.
_FILES_IN_MEMORY = 32
_READERS = 8
_MAX_LISTED = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportBatch:
    """N images of an export. `numbers`, int64 (N,), are COCO image ids; `is_val` is bool (N,); `files` are
    the image files, None if images are not copied."""

    columns: ShardColumns
    numbers: NDArray[np.int64]
    is_val: NDArray[np.bool_]
    files: tuple[ImageFile, ...] | None = None

    @property
    def image_ids(self) -> list[str]:
        ids: list[str] = self.columns.images["image_id"].to_pylist()
        return ids

    @property
    def splits(self) -> list[str]:
        """`train` or `val` for each image."""
        return [VAL if is_val else TRAIN for is_val in self.is_val]

    def part(self, is_val: bool) -> ExportBatch:
        """The images of one split, without their files."""
        wanted = self.is_val == is_val
        columns = self.columns.keep_images(wanted)
        return ExportBatch(columns=columns, numbers=self.numbers[wanted], is_val=self.is_val[wanted])


@dataclass(kw_only=True)
class ExportReport:
    """Counts of exported and skipped images.

    `rejected` counts images that were never labelled, by the store's reasons. `unavailable` counts images
    whose files cannot be read now, by reason; `listed` holds the first of them as (image id, reason, detail).
    """

    images: int = 0
    val_images: int = 0
    instances: int = 0
    empty_images: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    unavailable: Counter[str] = field(default_factory=Counter)
    listed: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, batch: ExportBatch) -> None:
        """Count the images of a batch."""
        self.images += batch.columns.num_images
        self.val_images += int(batch.is_val.sum())
        self.instances += len(batch.columns.areas)
        self.empty_images += int((batch.columns.counts == 0).sum())

    def skip(self, image_id: str, error: ImageError) -> None:
        """Count an image whose file is unavailable."""
        self.unavailable[error.reason] += 1
        if len(self.listed) < _MAX_LISTED:
            self.listed.append((image_id, str(error.reason), error.detail))


def export_batches(
    version: Version, selection: Selection, split: SplitConfig, corpus: Corpus | None, report: ExportReport
) -> Iterator[ExportBatch]:
    """Yield a version's images without rejected ones, in the store's order; with files if a corpus is given.

    Skipped images are added to `report`; the writer adds the rest.
    """
    has_coco_ids = _has_coco_ids(version)
    position = 0
    with ExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(_READERS)) if corpus is not None else None
        for shard in version.columns():
            positions = np.arange(position + 1, position + 1 + shard.num_images)
            position += shard.num_images
            numbers = shard.images["coco_id"].to_numpy() if has_coco_ids else positions
            is_usable = shard.images["status"].to_numpy() != Status.REJECTED.value
            report.rejected.update(shard.images["reason"].filter(~is_usable).to_pylist())
            columns = select_columns(shard.keep_images(is_usable), selection)
            is_val = is_validation(columns.images["image_id"].to_pylist(), split)
            batch = ExportBatch(columns=columns, numbers=numbers[is_usable], is_val=is_val)
            if corpus is None or executor is None:
                yield batch
            else:
                yield from _with_files(batch, corpus, executor, report)


def any_available(version: Version, image_ids: Sequence[str], corpus: Corpus | None) -> bool:
    """Whether the corpus now holds the file of any of these images, unchanged since it was labelled."""
    if corpus is None or not image_ids:
        return False
    wanted = pa.array(image_ids, pa.string())
    with ThreadPoolExecutor(_READERS) as executor:
        for shard in version.columns():
            rows = shard.images.filter(pc.is_in(shard.images["image_id"], wanted))
            for files in _read_files(rows, corpus, executor):
                if any(isinstance(file, ImageFile) for _, file in files):
                    return True
    return False


def _has_coco_ids(version: Version) -> bool:
    """Whether every image of the version has a unique COCO id."""
    parts = []
    for columns in version.columns():
        if columns.images["coco_id"].null_count:
            return False
        parts.append(columns.images["coco_id"].to_numpy())
    ids = np.concatenate([np.zeros(0, np.int64), *parts])
    return len(np.unique(ids)) == len(ids)


def _with_files(
    batch: ExportBatch, corpus: Corpus, executor: ThreadPoolExecutor, report: ExportReport
) -> Iterator[ExportBatch]:
    """Split the batch into smaller ones with image files; report images whose file is missing."""
    start = 0
    for files in _read_files(batch.columns.images, corpus, executor):
        is_kept = np.zeros(batch.columns.num_images, bool)
        for position, (image_id, file) in enumerate(files, start):
            is_kept[position] = isinstance(file, ImageFile)
            if isinstance(file, ImageError):
                report.skip(image_id, file)
        start += len(files)
        yield replace(
            batch,
            columns=batch.columns.keep_images(is_kept),
            numbers=batch.numbers[is_kept],
            is_val=batch.is_val[is_kept],
            files=tuple(file for _, file in files if isinstance(file, ImageFile)),
        )


def _read_files(
    images: pa.Table, corpus: Corpus, executor: ThreadPoolExecutor
) -> Iterator[list[tuple[str, ImageFile | ImageError]]]:
    """Yield (image id, file) of a shard's images, a few images at a time, in order."""
    table = images.select(["image_id", "path", "coco_id", "sha256"])
    for start in range(0, table.num_rows, _FILES_IN_MEMORY):
        rows = table.slice(start, _FILES_IN_MEMORY).to_pylist()
        records = [
            (ImageRecord(image_id=row["image_id"], path=row["path"], coco_id=row["coco_id"]), row["sha256"])
            for row in rows
        ]
        files = read_image_files(corpus, records, executor)
        yield [(row["image_id"], file) for row, file in zip(rows, files, strict=True)]
