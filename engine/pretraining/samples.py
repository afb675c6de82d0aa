"""Samples of pre-training: the random views of an image, as a pure function of the sample's number."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from engine.corpora import Corpus
from engine.errors import CorpusError, ImageError
from engine.images.decoding import DecodingConfig, decode_image
from engine.images.resizing import resize_image
from engine.pretraining.config import PretrainingConfig
from engine.pretraining.regions import cut_regions
from engine.pretraining.views import ViewMaker, Views
from engine.training.image_cache import Arrays, ImageCache
from engine.training.order import SampleNumber
from engine.types import ImageRecord

# Unreadable images in a row after which a run gives up.
_MAX_UNREADABLE = 100


class ImageReader:
    """Shrunk images of a corpus with their regions, kept in a cache."""

    def __init__(self, corpus: Corpus, cache: Path, config: PretrainingConfig) -> None:
        """`cache` is a local folder, see `ImageCache`."""
        self._corpus = corpus
        self._side = config.cache_side
        self._counts = config.regions.counts if config.regions.weight > 0 else ()
        self._decoding: DecodingConfig = config.decoding
        self._cache = ImageCache(cache, (corpus.uri, self._side, self._counts, self._decoding))

    def read(self, record: ImageRecord) -> NDArray[np.uint8]:
        """The image and a plane of region labels per count, uint8 (3 + n, H, W).

        Raises ImageError, TransientError.
        """
        planes: NDArray[np.uint8] = self._cache.read(record.path, lambda: self._prepare(record))["planes"]
        return planes

    def _prepare(self, record: ImageRecord) -> Arrays:
        image = decode_image(self._corpus.read(record), self._decoding)
        height, width = image.shape[:2]
        factor = self._side / min(height, width)
        if factor < 1:
            image = resize_image(image, (max(1, round(height * factor)), max(1, round(width * factor))))
        planes = [image] + ([cut_regions(image, self._counts)] if self._counts else [])
        return {"planes": np.ascontiguousarray(np.concatenate(planes, axis=2).transpose(2, 0, 1))}


Sources = Sequence[tuple[ImageReader, ImageRecord]]


def list_sources(corpora: Sequence[Corpus], cache: Path, config: PretrainingConfig) -> Sources:
    """All images of the corpora with their readers, at most `config.limit`. Raises CorpusError for none."""
    sources: list[tuple[ImageReader, ImageRecord]] = []
    for corpus in corpora:
        reader = ImageReader(corpus, cache, config)
        sources += [(reader, record) for record in islice(corpus.records(), config.limit)]
    if not sources:
        raise CorpusError(f"no images in {', '.join(corpus.uri for corpus in corpora)}")
    return sources[: config.limit]


class Rejection(NamedTuple):
    """An image that could not be read, and the reason."""

    image_id: str
    reason: str


class Sample(NamedTuple):
    """The views of one image, and the unreadable images that came before it."""

    views: Views
    rejected: tuple[Rejection, ...]


class Batch(NamedTuple):
    """Views of B images, see `Views`, and the unreadable images among them."""

    views: Views
    rejected: tuple[Rejection, ...]


class SampleMaker(Dataset[Sample]):
    """The samples of all images; an unreadable image is replaced by the next readable one of the corpus."""

    def __init__(self, sources: Sources, views: ViewMaker, seed: int) -> None:
        self._sources = sources
        self._views = views
        self._seed = seed

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, number: SampleNumber) -> Sample:
        """The sample. Raises CorpusError after many unreadable images in a row."""
        epoch, index = number
        planes, rejected = self._first_readable(index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_mix(self._seed, epoch, index))
            image = torch.from_numpy(planes)
            num_counts = len(image) - 3
            labels = torch.zeros_like(image[0])
            if num_counts:
                labels = image[3 + int(torch.randint(num_counts, ()))]
            return Sample(self._views.make(image[:3], labels), rejected)

    def _first_readable(self, index: int) -> tuple[NDArray[np.uint8], tuple[Rejection, ...]]:
        rejected: list[Rejection] = []
        for step in range(min(_MAX_UNREADABLE, len(self._sources))):
            reader, record = self._sources[(index + step) % len(self._sources)]
            try:
                return reader.read(record), tuple(rejected)
            except ImageError as error:
                rejected.append(Rejection(record.image_id, str(error)))
        first = rejected[0]
        raise CorpusError(
            f"{len(rejected)} images in a row cannot be read, the first is {first.image_id} ({first.reason})"
        )


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def collate(samples: list[Sample]) -> Batch:
    """Stack samples into a batch."""
    stacked = (torch.stack(parts) for parts in zip(*(sample.views for sample in samples), strict=True))
    return Batch(Views(*stacked), tuple(reject for sample in samples for reject in sample.rejected))
