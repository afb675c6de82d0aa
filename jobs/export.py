#!/usr/bin/env python
"""Write a store's labels as a training set: COCO, YOLO, WebDataset or Parquet."""

from __future__ import annotations

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
from jobs.cli.progress import ProgressDisplay

_MAX_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Write a store's labels as a training set, in one process and in constant memory.

    Exit codes: 0 done (missing images are counted and listed), 1 failed, 2 wrong use.
    """

    store: str
    """Label store: a folder or s3://bucket/prefix."""
    export: Annotated[ExportConfig, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes]
    output: str
    """Training set to write: a new folder or s3://bucket/prefix."""
    corpus: str | None = None
    """Where the images are now. If given, images are copied; yolo and webdataset need it."""
    round: int | None = None
    """Round of labels; the latest by default."""
    overwrite: bool = False
    """Replace another export in --output."""


def main(arguments: ExportArguments) -> None:
    labels = open_objects(arguments.store)
    version = PseudoLabelStore(labels).version(arguments.round)
    objects = open_objects(arguments.output)
    corpus = None
    if arguments.corpus is not None:
        corpus = open_corpus(arguments.corpus, version.info.corpus_kind, kept_indexes=labels)
    if not version.is_finished():
        print(f"version {version.name} is not finished: only its committed shards are exported")
    num_images = sum(summary.labelled + summary.no_object for summary in version.summaries())
    with ProgressDisplay(num_images) as display:
        report = export_version(
            version,
            arguments.export,
            objects,
            corpus=corpus,
            overwrite=arguments.overwrite,
            on_progress=lambda report: display.show(report.images, [f"{report.instances} masks"]),
        )
    if report is None:
        print(
            f"nothing to do: {objects.uri} holds this export already, with every image that is available "
            "(--overwrite writes it again)"
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


def summary_table(report: ExportReport) -> Table:
    """Counts of exported images and masks, and of images left out by reason."""
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
    instead = ": data.yaml names the other split in its place" if config.format == "yolo" else ""
    return [
        f"the {split} split is empty (--val-fraction {config.split.val_fraction:g}){instead}"
        for split, size in sizes.items()
        if size == 0
    ]


if __name__ == "__main__":
    run_job(ExportArguments, main)
