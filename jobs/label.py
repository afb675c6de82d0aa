#!/usr/bin/env python
"""Label the images of any corpus: its kind is detected, and the store has a default place."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from engine.corpora import Corpus, CorpusKind, FolderCorpus, Sa1bCorpus, open_coco, open_hrsid
from engine.corpora.detection import detect_kind
from engine.corpora.folder import SKIMAGE_URI
from engine.errors import ConfigurationError
from engine.objects.object_store import open_objects
from jobs.cli.console import run_job
from jobs.cli.labelling import LabelArguments, run_label_job
from jobs.label_hrsid import HrsidArguments


@dataclass(frozen=True, kw_only=True)
class CorpusArguments(LabelArguments):
    """Label the images of a corpus: images in, a store of instance masks out.

    Run it again to resume after a stop.
    Exit codes: 0 done (images that could not be read are rows with a reason), 1 failed, 2 wrong use.
    """

    corpus: str
    """The images: a folder, s3://bucket/prefix, or skimage: for a few photographs to try it on."""
    store: str | None = None  # type: ignore[assignment]
    """The store to write: a folder or s3://bucket/prefix. By default it lies beside the corpus: photos-labels
    for photos."""
    kind: Literal["auto", "folder", "coco", "sa1b", "hrsid"] = "auto"
    """Layout of the corpus; auto tells it from the names of the files."""
    annotations: str | None = None
    """Label only the images that this COCO file lists (relative to the corpus, or an absolute path or S3
    URI); its annotations are not used."""
    images: str | None = None
    """The folder of the corpus that the listed file names are relative to. Default: val2017 for
    instances_val2017.json if there is such a folder, otherwise the corpus."""
    preview: str | None = None
    """Folder or s3://bucket/prefix for pictures of the first labelled images. Default: preview/ in the
    store."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.annotations is not None and self.kind in ("folder", "sa1b"):
            raise ConfigurationError(
                f"--annotations lists images of --kind coco or hrsid, not of {self.kind}"
            )


def main(arguments: CorpusArguments) -> None:
    store = arguments.store or default_store(arguments.corpus)
    preview = arguments.preview or f"{store.rstrip('/')}/preview"
    kind = kind_of(arguments)
    arguments = replace(arguments, store=store, preview=preview)
    if kind == "hrsid" and arguments.labelling.tiling.tile is None:
        # Its ships are smaller than a patch of the whole image, and lie on a common background.
        usual = HrsidArguments(corpus="", store="").labelling
        labelling = replace(arguments.labelling, tiling=usual.tiling, method=usual.method)
        arguments = replace(arguments, labelling=labelling)
    print(f"corpus: {arguments.corpus} (kind {kind})", flush=True)
    run_label_job(open_kind(kind, arguments), arguments)
    has_sheet = next(open_objects(preview).keys("sheet.jpg"), None) is not None
    look = f"look at {preview}/sheet.jpg, then " if has_sheet else ""
    print(f"next: {look}{report_command(store, arguments.corpus)}")


def default_store(corpus: str) -> str:
    """The store of a local corpus: a folder beside it.

    Raises ConfigurationError for a corpus on S3, beside which nothing is written unasked.

    >>> default_store("/data/photos/"), default_store("skimage:")
    ('/data/photos-labels', 'skimage-labels')
    """
    if corpus == SKIMAGE_URI:
        return "skimage-labels"
    path = Path(corpus).expanduser()
    if "://" in corpus or not path.resolve().name:
        raise ConfigurationError(
            f"--store is missing: where the labels of {corpus} go, a folder or S3 prefix"
        )
    if path.name in ("", ".."):
        path = path.resolve()
    return str(path.with_name(f"{path.name}-labels"))


def kind_of(arguments: CorpusArguments) -> CorpusKind:
    """The kind that is given, or the one detected."""
    if arguments.kind != "auto":
        return arguments.kind
    detected = detect_kind(arguments.corpus)
    return "coco" if arguments.annotations is not None and detected != "hrsid" else detected


def open_kind(kind: CorpusKind, arguments: CorpusArguments) -> Corpus:
    """Open the corpus as the job of this kind does."""
    if kind == "coco":
        return open_coco(arguments.corpus, arguments.annotations, arguments.images)
    if kind == "hrsid":
        return open_hrsid(arguments.corpus, arguments.annotations)
    if kind == "sa1b":
        return Sa1bCorpus.open(arguments.corpus, open_objects(arguments.store))
    return FolderCorpus.open(arguments.corpus)


def report_command(store: str, corpus: str) -> str:
    """The command that summarises the store."""
    return shlex.join(["maskmill", "report", store, "--corpus", corpus, "--output", "report.html"])


if __name__ == "__main__":
    run_job(CorpusArguments, main)
