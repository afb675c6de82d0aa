#!/usr/bin/env python
"""Write a store's labels as a training set: COCO, YOLO, WebDataset or Parquet."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from engine.corpora import open_corpus
from engine.export.batch import ExportReport
from engine.export.export import ExportConfig, export_version
from engine.export.split import TRAIN, VAL
from engine.objects.object_store import open_objects
from engine.store.pseudo_labels import PseudoLabelStore
from jobs.cli.console import run_job

_MAX_LISTED = 20
_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Write a store's labels as a training set, in one process and in constant memory.

    Exit codes: 0 done (images that cannot be had are counted and listed), 1 failed, 2 wrong use.
    """

    store: str
    """Where the labels are: a folder or s3://bucket/prefix."""
    export: Annotated[ExportConfig, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes]
    output: str
    """Where the training set goes: a new folder or s3://bucket/prefix."""
    corpus: str | None = None
    """Where the images are now; with it they are copied (YOLO and WebDataset hold images and need it)."""
    round: int | None = None
    """The round of labels; the latest by default."""
    overwrite: bool = False
    """Replace another export at --output."""


def main(arguments: ExportArguments) -> None:
    labels = open_objects(arguments.store)
    version = PseudoLabelStore(labels).version(arguments.round)
    objects = open_objects(arguments.output)
    corpus = None
    if arguments.corpus is not None:
        corpus = open_corpus(arguments.corpus, version.info.corpus_kind, kept_indexes=labels)
    if not version.is_finished():
        print(f"version {version.name} is not finished: this exports the shards that it has")
    report = export_version(
        version,
        arguments.export,
        objects,
        corpus=corpus,
        overwrite=arguments.overwrite,
        on_progress=ProgressLines().show,
    )
    if report is None:
        print(
            f"nothing to do: {objects.uri} holds this export already, with all images that can be had "
            "(--overwrite makes it anew)"
        )
        return
    Console().print(summary_table(report))
    for line in empty_split_lines(report, arguments.export):
        print(line)
    for image_id, reason, detail in report.listed[:_MAX_LISTED]:
        print(f"left out {image_id!r}: {reason}: {detail}")
    if report.unavailable.total() > _MAX_LISTED:
        print(f"... and {report.unavailable.total() - _MAX_LISTED} more, see export.json")
    print(f"export: {objects.uri} ({arguments.export.format}, version {version.name})")


class ProgressLines:
    """A line from time to time."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()

    def show(self, report: ExportReport) -> None:
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            print(f"{report.images} images, {report.images / (now - self._start):.0f} images/s", flush=True)


def summary_table(report: ExportReport) -> Table:
    """What went in and what did not."""
    table = Table("export", "count")
    table.columns[1].justify = "right"
    table.add_row("images", str(report.images))
    table.add_row("  train", str(report.images - report.val_images))
    table.add_row("  val", str(report.val_images))
    table.add_row("  without a mask", str(report.empty_images))
    table.add_row("masks", str(report.instances), end_section=True)
    table.add_row("left out", str(report.rejected.total() + report.unavailable.total()))
    for reason, count in sorted((report.rejected + report.unavailable).items()):
        table.add_row(f"  {reason}", str(count))
    return table


def empty_split_lines(report: ExportReport, config: ExportConfig) -> list[str]:
    """A line for each split without an image."""
    sizes = {TRAIN: report.images - report.val_images, VAL: report.val_images}
    instead = ": data.yaml names the other one in its place" if config.format == "yolo" else ""
    return [
        f"the {split} split is empty (--val-fraction {config.split.val_fraction:g}){instead}"
        for split, size in sizes.items()
        if size == 0
    ]


if __name__ == "__main__":
    run_job(ExportArguments, main)
