"""Human annotations as ground truth, named by a path or an s3:// URI:

a .json file         in COCO's format (COCO, HRSID), or one of SA-1B's, which holds a single image
a COCO folder        annotations/instances_<split>.json, or annotations/<name>.json as in HRSID
a folder of masks    *.png (or masks/*.png): 0 is background, every other value an instance (PennFudan)
an SA-1B folder      sa_<n>.json for each image, tars of them, or both; or a single tar
"""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from engine.errors import CorpusError, ObjectMissing, StoreError, TransientError
from engine.masks.rle import compress_segmentation, decode_rles, encode_rles
from engine.objects.object_store import ObjectStore, open_objects, read_uri

Item = TypeVar("Item")
_ANNOTATIONS = "annotations/"
_MASKS = "masks/"
# Raised by JSON of an unexpected structure.
_PARSE_ERRORS = (KeyError, TypeError, ValueError, OverflowError)


@dataclass(frozen=True, kw_only=True, eq=False)
class AnnotatedImage:
    """One image and its N annotated instances.

    `path` is relative to the image folder; for an id mask it is the mask's own path. `size` is
    (height, width). `rles` are compressed run lengths. `boxes_xywh`, float64 (N, 4), and `areas`, float64
    (N,), are as annotated, or computed from the masks if the annotation lacks them. `is_crowd`, bool (N,),
    marks regions of uncounted objects, which COCO ignores. `mask_folder` is the name of the folder of an id
    mask, since id masks can be mistaken for images of the same name; None for other formats.
    """

    coco_id: int | None
    path: str
    size: tuple[int, int]
    rles: tuple[bytes, ...]
    boxes_xywh: NDArray[np.float64]
    areas: NDArray[np.float64]
    is_crowd: NDArray[np.bool_]
    mask_folder: str | None = None

    @property
    def num_objects(self) -> int:
        """The number of instances without crowds."""
        return int(np.count_nonzero(~self.is_crowd))

    def masks(self) -> NDArray[np.bool_]:
        """Masks of the instances without crowds, bool (num_objects, H, W), in annotation order."""
        rles = [rle for rle, is_crowd in zip(self.rles, self.is_crowd, strict=True) if not is_crowd]
        return decode_rles(rles, self.size)


def read_ground_truth(uri: str) -> Iterator[AnnotatedImage]:
    """Yield all annotated images, also those without instances: COCO's by ascending id, others by name.

    One file is in memory at a time. Raises CorpusError, with a one-line message, if there is no ground truth
    or it cannot be parsed.
    """
    try:
        if uri.endswith(".json"):
            yield from _parse_json(read_uri(uri), uri, "")
        elif uri.endswith(".tar"):
            yield from _read_tar(uri)
        else:
            yield from _read_folder(open_objects(uri))
    except ObjectMissing as error:
        raise CorpusError(
            f"no ground truth at {uri!r}: give a .json file or a folder of annotations"
        ) from error
    except (StoreError, TransientError) as error:
        raise CorpusError(f"cannot read the ground truth {uri!r}: {error}") from error


def read_photograph(path: Path) -> NDArray[np.uint8]:
    """Read an image named by a ground truth as RGB (H, W, 3). Raises CorpusError if it is unreadable."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"cannot read {path}: {error}; the images must be where the annotations say"
        ) from error


def subsample(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` evenly spaced items; all items if `limit` is None.

    >>> subsample("abcdefg", 3)
    ['a', 'c', 'e']
    """
    if limit is None or limit >= len(items):
        return list(items)
    return [items[position * len(items) // limit] for position in range(limit)]


def _read_folder(objects: ObjectStore) -> Iterator[AnnotatedImage]:
    listed = [key for key in objects.keys(_ANNOTATIONS) if key.endswith(".json")]
    listed = [key for key in listed if "/instances_" in key] or listed
    if len(listed) > 1:
        names = ", ".join(PurePosixPath(key).name for key in listed)
        raise CorpusError(f"{objects.uri} has several annotation files ({names}): give one of them")
    if listed:
        (key,) = listed
        split = PurePosixPath(key).stem
        folder = f"{split.removeprefix('instances_')}/" if split.startswith("instances_") else ""
        yield from _parse_json(objects.read(key), f"{objects.uri}/{key}", folder)
        return
    masks = _MASKS if next(objects.keys(_MASKS), None) is not None else ""
    found = False
    for key in objects.keys(masks):
        images = list(_read_file(objects, key, masks))
        found = found or bool(images)
        yield from images
    if not found:
        raise CorpusError(
            f"no ground truth in {objects.uri}: looked for annotations/*.json, *.json, *.tar and *.png masks"
        )


def _read_file(objects: ObjectStore, key: str, masks: str) -> Iterator[AnnotatedImage]:
    """Yield the images of one file of a folder; nothing if it is not an annotation file."""
    where = f"{objects.uri}/{key}"
    if key.endswith(".tar"):
        yield from _read_tar(where)
    elif key.endswith(".json") and not masks:
        yield from _parse_json(objects.read(key), where, _folder_of(key))
    elif key.endswith(".png"):
        yield _parse_id_mask(objects.read(key), where, key.removeprefix(masks))


def _read_tar(uri: str) -> Iterator[AnnotatedImage]:
    """Yield the images of SA-1B's JSON files in a tar; its photographs are skipped unread."""
    if uri.startswith("s3://"):
        raise CorpusError(f"{uri} cannot be searched for annotations on S3: copy the tar, or unpack its JSON")
    try:
        with tarfile.open(uri, "r:") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name.endswith(".json") else None
                if file is not None:
                    yield from _parse_json(file.read(), f"{uri}/{member.name}", _folder_of(member.name))
    except (tarfile.TarError, OSError) as error:
        raise CorpusError(f"cannot read the tar {uri}: {error}") from error


def _folder_of(key: str) -> str:
    return key[: key.rfind("/") + 1].removeprefix("./")


def _parse_json(data: bytes, name: str, folder: str) -> Iterator[AnnotatedImage]:
    """Yield the images of one JSON file, with `folder` put before their paths; errors say `name`."""
    try:
        content = json.loads(data)
    except ValueError as error:
        raise CorpusError(f"{name} is not JSON: {error}") from error
    if isinstance(content, dict) and {"image", "annotations"} <= content.keys():
        yield _parse_image(content["image"], "image_id", content["annotations"], name, folder)
    elif isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        yield from _parse_coco(content, name, folder)
    else:
        raise CorpusError(f'{name} is not a ground truth: expected "images" or "image", and "annotations"')


def _parse_coco(content: dict[str, Any], name: str, folder: str) -> Iterator[AnnotatedImage]:
    annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
    try:
        for annotation in content["annotations"]:
            annotations[int(annotation["image_id"])].append(annotation)
        images = sorted(((int(info["id"]), info) for info in content["images"]), key=itemgetter(0))
    except _PARSE_ERRORS as error:
        raise CorpusError(f"{name} is not in COCO's format: {_cause(error)}") from error
    if annotations and not any(number in annotations for number, _ in images):
        raise CorpusError(
            f"{name}: no annotation refers to a listed image: the first has image_id "
            f"{next(iter(annotations))}; give a file whose annotations refer to its images by id"
        )
    for number, info in images:
        yield _parse_image(info, "id", annotations[number], name, folder)


def _parse_image(
    info: dict[str, Any], id_key: str, annotations: Sequence[dict[str, Any]], name: str, folder: str
) -> AnnotatedImage:
    """Parse one image and its annotations; `id_key` is the key of the image's id."""
    parsed: list[_Annotation] = []
    try:
        size = (int(info["height"]), int(info["width"]))
        coco_id, path = int(info[id_key]), f"{folder}{info['file_name']}"
        if min(size) < 1:
            raise ValueError(f"height and width are at least 1, got {size[0]} and {size[1]}")
        for annotation in annotations:
            parsed.append(_parse_annotation(annotation, size))
    except _PARSE_ERRORS as error:
        is_image = isinstance(info, dict)
        where = f"image {info.get(id_key)}, annotation {len(parsed)}" if is_image else "an image"
        raise CorpusError(f"{name}: cannot parse {where}: {_cause(error)}") from error
    return AnnotatedImage(
        coco_id=coco_id,
        path=path,
        size=size,
        rles=tuple(annotation.rle for annotation in parsed),
        boxes_xywh=np.array([annotation.box_xywh for annotation in parsed], np.float64).reshape(-1, 4),
        areas=np.array([annotation.area for annotation in parsed], np.float64),
        is_crowd=np.array([annotation.is_crowd for annotation in parsed], bool),
    )


class _Annotation(NamedTuple):
    """One annotated instance."""

    rle: bytes
    box_xywh: tuple[float, ...]
    area: float
    is_crowd: bool


def _parse_annotation(annotation: dict[str, Any], size: tuple[int, int]) -> _Annotation:
    rle = compress_segmentation(annotation["segmentation"], size)
    mask = {"size": list(size), "counts": rle}
    box, area = annotation.get("bbox"), annotation.get("area")
    box_xywh = tuple(float(value) for value in (coco_mask.toBbox(mask) if box is None else box))
    area = float(coco_mask.area(mask) if area is None else area)
    if len(box_xywh) != 4 or not all(map(math.isfinite, (*box_xywh, area))):
        raise ValueError(
            f"bbox must be four finite numbers and area one, got {box} and {annotation.get('area')}"
        )
    return _Annotation(rle, box_xywh, area, bool(annotation.get("iscrowd")))


def _parse_id_mask(data: bytes, name: str, path: str) -> AnnotatedImage:
    """Parse a PNG of instance ids; PennFudan adds _mask to the image's name."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            ids = np.asarray(image)
    except (OSError, ValueError) as error:
        raise CorpusError(f"{name} is not a PNG file: {error}") from error
    if ids.ndim != 2:
        raise CorpusError(f"{name} has {ids.shape[2]} channels; an id mask has one")
    size = (ids.shape[0], ids.shape[1])
    instances = [value for value in np.unique(ids) if value != 0]
    rles = tuple(rle for value in instances for rle in encode_rles((ids == value)[None]))
    encoded = [{"size": list(size), "counts": rle} for rle in rles]
    return AnnotatedImage(
        coco_id=None,
        path=f"{path.removesuffix('.png').removesuffix('_mask')}.png",
        size=size,
        rles=rles,
        boxes_xywh=np.array([coco_mask.toBbox(rle) for rle in encoded], np.float64).reshape(-1, 4),
        areas=np.array([coco_mask.area(rle) for rle in encoded], np.float64),
        is_crowd=np.zeros(len(rles), bool),
        mask_folder=PurePosixPath(name).parent.name,
    )


def _cause(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)
