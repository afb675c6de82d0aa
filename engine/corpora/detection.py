"""Tell the kind of a corpus from the names of its files."""

from __future__ import annotations

import re
from itertools import islice

from engine.corpora import CorpusKind
from engine.corpora.coco import HRSID_ANNOTATIONS, HRSID_IMAGES, coco_number
from engine.corpora.files import is_hidden, is_image, open_corpus_objects
from engine.corpora.folder import SKIMAGE_URI
from engine.errors import CorpusError, StoreError
from engine.objects.object_store import ObjectStore

_SA1B_NAME = re.compile(r"(?:^|/)sa_\d+\.(?:tar|jpg)$")
# Names that are looked at: a data set's files are named alike, and a bucket may hold millions.
_MAX_NAMES = 200


def detect_kind(uri: str) -> CorpusKind:
    """The kind of the corpus at `uri`, from its first 200 names.

    hrsid if it holds JPEGImages/ and a JSON file in annotations/, sa1b if its images and tars are named as
    those of SA-1B or there are tars only, coco if all images have numbers of 12 digits, otherwise folder.
    Raises CorpusError if there is no such folder.
    """
    if uri == SKIMAGE_URI:
        return "folder"
    objects = open_corpus_objects(uri, "a folder, s3://bucket/prefix or skimage:")
    try:
        if _is_hrsid(objects):
            return "hrsid"
        names = [key for key in islice(objects.keys(), _MAX_NAMES) if not is_hidden(key)]
    except StoreError as error:
        raise CorpusError(str(error)) from error
    return kind_of_names(names)


def kind_of_names(names: list[str]) -> CorpusKind:
    """The kind of a corpus whose first files have these names: sa1b, coco or folder.

    >>> kind_of_names(["sa_000020.tar"]), kind_of_names(["val2017/000000000139.jpg"]), kind_of_names([])
    ('sa1b', 'coco', 'folder')
    """
    images = [name for name in names if is_image(name)]
    tars = [name for name in names if name.lower().endswith(".tar")]
    if (images or tars) and all(_SA1B_NAME.search(name) for name in images + tars):
        return "sa1b"
    if tars and not images:
        return "sa1b"
    if images and all(coco_number(name) is not None for name in images):
        return "coco"
    return "folder"


def _is_hrsid(objects: ObjectStore) -> bool:
    has_images = next(objects.keys(f"{HRSID_IMAGES}/"), None) is not None
    return has_images and any(key.endswith(".json") for key in objects.keys(f"{HRSID_ANNOTATIONS}/"))
