"""Images listed by a COCO annotation file, or a folder of images with COCO's file names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Literal

from engine.corpora.files import escape_name, open_corpus_objects
from engine.corpora.folder import FolderCorpus
from engine.corpora.image_list import ImageList
from engine.errors import CorpusError, StoreError
from engine.objects.object_store import ObjectStore, open_objects
from engine.types import ImageRecord

HRSID_IMAGES = "JPEGImages"
HRSID_ANNOTATIONS = "annotations"
# COCO names files by their id, COCO_val2014_000000000139.jpg or 000000000139.jpg.
_COCO_NAME = re.compile(r"(?:^|[/_])(\d{12})\.\w+$")


class CocoCorpus:
    """The images of a list in the list's order, or those of a folder in the order of their paths' bytes.

    The image id is the path relative to the corpus root. The COCO id is the list's, or the number in a file
    name such as 000000000139.jpg.
    """

    def __init__(
        self,
        objects: ObjectStore,
        kind: Literal["coco", "hrsid"],
        image_list: ImageList | None = None,
        image_folder: str = "",
    ) -> None:
        """The list's file names are relative to `image_folder`, a path within the corpus."""
        self.kind: Literal["coco", "hrsid"] = kind
        self._folder = FolderCorpus(objects)
        self._list = image_list
        self._prefix = f"{image_folder.strip('/')}/" if image_folder.strip("/") else ""

    @property
    def uri(self) -> str:
        return self._folder.uri

    def records(self, after: ImageRecord | None = None) -> Iterator[ImageRecord]:
        if self._list is None:
            for record in self._folder.records(after):
                yield replace(record, coco_id=coco_number(record.path))
            return
        records = (
            ImageRecord(image_id=path, path=path, coco_id=image.coco_id)
            for image in self._list.images()
            for path in [escape_name(self._prefix + image.file_name)]
        )
        if after is not None and not any(record.path == after.path for record in records):
            raise CorpusError(
                f"{self._list.name} no longer lists {after.path!r}, the last image that was planned; "
                "give the list that the labels were begun with, or --overwrite"
            )
        yield from records

    def read(self, record: ImageRecord) -> bytes:
        return self._folder.read(record)


def open_coco(uri: str, annotations: str | None = None, images: str | None = None) -> CocoCorpus:
    """Open the images below `uri` that the list `annotations` names, or all of them without a list.

    `annotations` is a path relative to the corpus, an absolute path or an S3 URI. The list's file names are
    relative to the folder `images` of the corpus, by default `val2017` for `instances_val2017.json` if that
    folder exists, else the corpus root. Raises CorpusError if the list cannot be used.
    """
    objects = open_corpus_objects(uri)
    if annotations is None:
        if images is not None:
            raise CorpusError(
                "--images goes with --annotations; without a list --corpus is the folder itself"
            )
        return CocoCorpus(objects, "coco")
    image_list = _checked_list(objects, annotations)
    return CocoCorpus(
        objects, "coco", image_list, _split_folder(objects, annotations) if images is None else images
    )


def open_hrsid(uri: str, annotations: str | None = None) -> CocoCorpus:
    """Open the chips in JPEGImages/ that `annotations` names, by default the only list in annotations/.

    Raises CorpusError if the list cannot be used, or if none is given and there is not exactly one.
    """
    objects = open_corpus_objects(uri)
    if annotations is None:
        annotations = _only_list(objects)
    return CocoCorpus(objects, "hrsid", _checked_list(objects, annotations), HRSID_IMAGES)


def coco_number(path: str) -> int | None:
    """The COCO id in a file name, or None.

    >>> coco_number("train2014/COCO_train2014_000000000139.jpg"), coco_number("000000000139.jpg")
    (139, 139)
    >>> coco_number("holiday.jpg") is None
    True
    """
    match = _COCO_NAME.search(path)
    return int(match[1]) if match else None


def _checked_list(objects: ObjectStore, annotations: str) -> ImageList:
    parent, _, name = annotations.rpartition("/")
    try:
        outside = annotations.startswith("/") or "://" in annotations
        image_list = (
            ImageList(open_objects(parent or "/"), name) if outside else ImageList(objects, annotations)
        )
    except StoreError as error:
        raise CorpusError(str(error)) from error
    image_list.check()
    return image_list


def _split_folder(objects: ObjectStore, annotations: str) -> str:
    """The image folder for `instances_<split>.json`: `<split>` if it exists, else the corpus root."""
    split = PurePosixPath(annotations).stem.rpartition("_")[2]
    try:
        return split if next(objects.keys(f"{split}/"), None) is not None else ""
    except StoreError as error:
        raise CorpusError(str(error)) from error


def _only_list(objects: ObjectStore) -> str:
    try:
        found = [key for key in objects.keys(f"{HRSID_ANNOTATIONS}/") if key.endswith(".json")]
    except StoreError as error:
        raise CorpusError(str(error)) from error
    if len(found) != 1:
        there = f"there are {', '.join(found)}" if found else f"{HRSID_ANNOTATIONS}/ has none"
        raise CorpusError(f"cannot choose the list of {objects.uri}: give --annotations FILE.json ({there})")
    return found[0]
