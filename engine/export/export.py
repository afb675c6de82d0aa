"""Export a version of labels as a training set."""

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

Format = Literal["coco", "yolo", "webdataset", "parquet"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Format, selection and split of an export."""

    format: Format
    """coco: annotation files; yolo: ultralytics' segmentation; webdataset: tars; parquet: a row per image."""
    segmentation: Segmentation = "rle"
    """Encoding of masks in COCO files: run lengths, or polygons (which decode to the same masks)."""
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    split: SplitConfig = field(default_factory=SplitConfig)

    def __post_init__(self) -> None:
        if self.segmentation == "polygon" and self.format != "coco":
            raise ConfigurationError(f"segmentation is a setting of format coco, not of {self.format}")


class ExportWriter(Protocol):
    """Writer of one format; batches are added in order."""

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
    """Write a version's labels as a training set, in constant memory; None if this export exists already.

    With a corpus, images are copied; YOLO and WebDataset contain the images and require one. Equal labels,
    configuration and images give equal bytes. An export that lacks images is rebuilt once one of the images
    that it lists as missing is available.

    Raises UsageError if the export cannot begin or no image is available, and TransientError if a server does
    not answer. The export is unfinished then, and another call rebuilds it.
    """
    if corpus is None and config.format in ("yolo", "webdataset"):
        raise ConfigurationError(f"format {config.format} contains the images: give the corpus")
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
            _check_has_exported(report, corpus)
    finish_export(objects, description, vars(report))
    return report


def _check_has_exported(report: ExportReport, corpus: Corpus) -> None:
    """Raise CorpusError if there were images to copy and none was available."""
    if report.images == 0 and report.listed:
        image_id, reason, detail = report.listed[0]
        raise CorpusError(
            f"none of {report.unavailable.total()} images are in {corpus.uri} as they were labelled "
            f"({image_id!r}: {reason}: {detail}); give the corpus that holds them"
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
    """Identity of an export, for its manifest; `labels` changes when a version is extended."""
    return {
        "version": version.name,
        "labels": version.content_digest(),
        "images": has_images,
        **asdict(config),
    }
