"""Training sets for those who come after: a version of labels as COCO, YOLO, WebDataset or Parquet files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from engine.corpora import Corpus
from engine.errors import ConfigurationError, CorpusError
from engine.export.batch import ExportBatch, ExportReport, any_available, export_batches
from engine.export.coco import Segmentation, open_coco
from engine.export.destination import begin_export, finish_export
from engine.export.parquet import open_parquet
from engine.export.split import SplitConfig
from engine.export.webdataset import open_webdataset
from engine.export.yolo import open_yolo
from engine.objects.object_store import ObjectStore
from engine.store.pseudo_labels import Version
from engine.store.selection import SelectionConfig, plan_selection

__all__ = ["ExportConfig", "ExportReport", "Format", "export_version"]

Format = Literal["coco", "yolo", "webdataset", "parquet"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Everything that decides what an export holds, but for the store and the images."""

    format: Format
    """coco: annotation files; yolo: ultralytics' segmentation; webdataset: tars; parquet: a row per image."""
    segmentation: Segmentation = "rle"
    """How COCO files hold masks: run lengths, or polygons (which give back the same masks)."""
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    split: SplitConfig = field(default_factory=SplitConfig)

    def __post_init__(self) -> None:
        if self.segmentation == "polygon" and self.format != "coco":
            raise ConfigurationError(f"--segmentation is a setting of --format coco, not of {self.format}")


class ExportWriter(Protocol):
    """What every format is: a thing that batches are added to, in order."""

    def add(self, batch: ExportBatch) -> None:
        """Write a batch."""


def export_version(
    version: Version,
    config: ExportConfig,
    objects: ObjectStore,
    *,
    corpus: Corpus | None = None,
    overwrite: bool = False,
    on_progress: Callable[[ExportReport], None] = lambda report: None,
) -> ExportReport | None:
    """Write a version's labels as a training set, in constant memory; None where this export is there.

    With a corpus, images are copied; YOLO and WebDataset hold images and need one. Equal labels,
    configuration and images give equal bytes. An export that had to do without images is made anew once one
    of those it lists can be had. Raises UsageError where the export cannot begin or no image can be had, and
    TransientError where a server stays away: nothing looks whole then, and another call makes it anew.
    """
    if corpus is None and config.format in ("yolo", "webdataset"):
        raise ConfigurationError(f"--format {config.format} holds images: say with --corpus where they are")
    selection = plan_selection(version, config.selection)
    description = _describe(version, config, has_images=corpus is not None)
    if not begin_export(objects, description, overwrite, lambda ids: any_available(version, ids, corpus)):
        return None
    report = ExportReport()
    with _open_writer(config, objects, has_images=corpus is not None) as writer:
        for batch in export_batches(version, selection, config.split, corpus, report):
            writer.add(batch)
            report.add(batch)
            on_progress(report)
        if corpus is not None:
            _check_has_images(report, corpus)
    finish_export(objects, description, vars(report))
    return report


def _check_has_images(report: ExportReport, corpus: Corpus) -> None:
    """Raise CorpusError where there were images to copy and not one of them could be had."""
    if report.images == 0 and report.listed:
        image_id, reason, detail = report.listed[0]
        raise CorpusError(
            f"none of {report.unavailable.total()} images are in {corpus.uri} as they were labelled "
            f"({image_id!r}: {reason}: {detail}); give their place with --corpus"
        )


@contextmanager
def _open_writer(config: ExportConfig, objects: ObjectStore, has_images: bool) -> Iterator[ExportWriter]:
    if config.format == "coco":
        with open_coco(objects, config.segmentation) as coco:
            yield coco
    elif config.format == "webdataset":
        with open_webdataset(objects) as webdataset:
            yield webdataset
    elif config.format == "parquet":
        with open_parquet(objects, has_images) as parquet:
            yield parquet
    else:
        with open_yolo(objects) as yolo:
            yield yolo


def _describe(version: Version, config: ExportConfig, has_images: bool) -> dict[str, Any]:
    """What an export is of, for its manifest; `labels` changes when a version is extended."""
    return {
        "version": version.name,
        "labels": version.content_digest(),
        "images": has_images,
        **asdict(config),
    }
