"""A version of labels and its images as a torch dataset, without an export."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from engine.corpora import Corpus
from engine.errors import CorpusError
from engine.images.decoding import DecodingConfig, decode_image
from engine.masks.rle import decode_rles
from engine.solo.labelled_images import list_images
from engine.store.pseudo_labels import Version
from engine.store.selection import SelectionConfig


class LabelDataset(Dataset[tuple[torch.Tensor, dict[str, torch.Tensor]]]):
    """The images of a version with at least one selected instance, as torchvision's detectors take them.

    Item i is an image, uint8 RGB (3, H, W), and a target of N instances: `boxes` float32 (N, 4) as
    (x0, y0, x1, y1), `labels` int64 (N,) of ones, `masks` bool (N, H, W), `scores` float32 (N,), best first.
    Run lengths of all instances are held in memory; images are read when they are asked for. For a
    DataLoader with `collate_fn=lambda items: tuple(zip(*items))`.
    """

    def __init__(self, version: Version, corpus: Corpus, selection: SelectionConfig | None = None) -> None:
        """Raises StoreError if no instance is selected."""
        self._corpus = corpus
        self._images = list_images(version, selection or SelectionConfig())

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Raises ImageError if the image cannot be read, CorpusError if its size is another one now."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"the dataset has {len(self)} images, there is none of number {index}")
        record, size = self._images.record(index), self._images.size(index)
        image_hwc = decode_image(self._corpus.read(record), DecodingConfig())
        if image_hwc.shape[:2] != size:
            raise CorpusError(
                f"{record.image_id!r} had (height, width) {size} when it was labelled and has "
                f"{image_hwc.shape[:2]} now: give the images that were labelled"
            )
        shard, row = self._images.locations[index]
        columns = self._images.shards[shard]
        rows = slice(*columns.offsets[row : row + 2])
        target = {
            "boxes": torch.from_numpy(columns.boxes_xyxy[rows].astype(np.float32)),
            "labels": torch.ones(len(columns.scores[rows]), dtype=torch.int64),
            "masks": torch.from_numpy(decode_rles(self._images.rles(index), size)),
            "scores": torch.from_numpy(columns.scores[rows].copy()),
        }
        return torch.from_numpy(image_hwc.transpose(2, 0, 1).copy()), target
