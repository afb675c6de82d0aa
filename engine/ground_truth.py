"""What people drew: instances of COCO-format annotations, to measure against."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from engine.errors import CorpusError
from engine.masks import decode_rles


@dataclass(frozen=True, kw_only=True, eq=False)
class AnnotatedImage:
    """One photograph and the instances that people drew in it; `size` is (height, width)."""

    coco_id: int
    path: Path
    size: tuple[int, int]
    rles: tuple[bytes, ...]

    def masks(self) -> NDArray[np.bool_]:
        """The instances' masks, bool (N, H, W), in the order of the annotations."""
        return decode_rles(self.rles, self.size)


def read_coco_folder(folder: Path) -> Iterator[AnnotatedImage]:
    """Images with instances of a folder in COCO's layout, by rising id; crowds are left out.

    The layout is `annotations/instances_<split>.json` beside `<split>/*.jpg`; the first such file counts.
    Raises CorpusError where there is none.
    """
    paths = sorted((folder / "annotations").glob("instances_*.json"))
    if not paths:
        raise CorpusError(f"no annotations/instances_*.json under {folder}: give a folder in COCO's layout")
    content = json.loads(paths[0].read_text())
    annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd"):
            annotations[annotation["image_id"]].append(annotation)
    for info in sorted(content["images"], key=lambda info: int(info["id"])):
        size = (info["height"], info["width"])
        if info["id"] in annotations:
            yield AnnotatedImage(
                coco_id=info["id"],
                path=folder / paths[0].stem.removeprefix("instances_") / info["file_name"],
                size=size,
                rles=tuple(compress_segmentation(a["segmentation"], size) for a in annotations[info["id"]]),
            )


def compress_segmentation(segmentation: list[list[float]] | dict[str, Any], size: tuple[int, int]) -> bytes:
    """COCO's compressed run lengths of polygons or of run lengths, compressed or not, for (height, width)."""
    if isinstance(segmentation, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, *size)
    else:
        rle = segmentation
    counts = rle["counts"]
    return counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
