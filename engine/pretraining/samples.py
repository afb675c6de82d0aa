"""From a corpus to batches of views: what a sample is depends on its number, the seed and the images."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from engine.corpora import Corpus
from engine.errors import CorpusError, ImageError
from engine.images.decoding import DecodingConfig, decode_image
from engine.images.resizing import resize_image
from engine.pretraining.regions import cut_regions
from engine.pretraining.views import ViewMaker, Views
from engine.training.order import SampleNumber
from engine.types import ImageRecord

_TRIES = 100


class ImageCache:
    """Images of a corpus, shrunk, with their regions, as files of raw arrays in a local folder.

    An image is read and decoded when it is first asked for, by whichever process asks; files appear in one
    step, so that processes of one machine can share the folder.
    """

    def __init__(
        self, corpus: Corpus, folder: Path, side: int, counts: tuple[int, ...], decoding: DecodingConfig
    ) -> None:
        """Images get a shorter side of at most `side` pixels; `counts` are as in `cut_regions`, or empty."""
        self._corpus = corpus
        self._side = side
        self._counts = counts
        self._decoding = decoding
        key = hashlib.sha256(repr((corpus.uri, side, counts, decoding)).encode()).hexdigest()[:16]
        self._folder = folder / key
        self._folder.mkdir(parents=True, exist_ok=True)

    def read(self, record: ImageRecord) -> NDArray[np.uint8]:
        """The image and its regions as planes, uint8 (3 + n, H, W). Raises ImageError, TransientError."""
        path = self._folder / hashlib.sha256(record.path.encode()).hexdigest()
        try:
            return _load(path)
        except (OSError, EOFError, ValueError):
            # It is not there, or a machine went away while its disk was written.
            _write(path, self._prepare(record))
            return _load(path)

    def _prepare(self, record: ImageRecord) -> NDArray[np.uint8]:
        image = decode_image(self._corpus.read(record), self._decoding)
        height, width = image.shape[:2]
        factor = self._side / min(height, width)
        if factor < 1:
            image = resize_image(image, (max(1, round(height * factor)), max(1, round(width * factor))))
        planes = [image] + ([cut_regions(image, self._counts)] if self._counts else [])
        return np.ascontiguousarray(np.concatenate(planes, axis=2).transpose(2, 0, 1))


def _load(path: Path) -> NDArray[np.uint8]:
    planes: NDArray[np.uint8] = np.load(path, allow_pickle=False)
    return planes


def _write(path: Path, planes: NDArray[np.uint8]) -> None:
    sink = io.BytesIO()
    np.save(sink, planes, allow_pickle=False)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_bytes(sink.getvalue())
    partial.replace(path)


class Sample(NamedTuple):
    """The views of one image, and the images that could not be read on the way to it: (path, why)."""

    views: Views
    rejected: tuple[tuple[str, str], ...]


class Batch(NamedTuple):
    """Views of B images, see `Views`, and the images that could not be read."""

    views: Views
    rejected: tuple[tuple[str, str], ...]


class SampleStream(Dataset[Sample]):
    """An image's views as they are cut in an epoch, see `engine.training.order`.

    In the place of an image that cannot be read stands the next in the corpus that can.
    """

    def __init__(
        self, sources: Sequence[tuple[ImageCache, ImageRecord]], maker: ViewMaker, seed: int
    ) -> None:
        self._sources = sources
        self._maker = maker
        self._seed = seed

    def __getitem__(self, number: SampleNumber) -> Sample:
        """Raises CorpusError where no image near by can be read."""
        epoch, index = number
        planes, rejected = self._first_readable(index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_mix(self._seed, epoch, index))
            image = torch.from_numpy(planes)
            num_counts = len(image) - 3
            labels = (
                image[3 + int(torch.randint(num_counts, ()))] if num_counts else torch.zeros_like(image[0])
            )
            return Sample(self._maker.make(image[:3], labels), rejected)

    def _first_readable(self, index: int) -> tuple[NDArray[np.uint8], tuple[tuple[str, str], ...]]:
        rejected: list[tuple[str, str]] = []
        for step in range(min(_TRIES, len(self._sources))):
            cache, record = self._sources[(index + step) % len(self._sources)]
            try:
                return cache.read(record), tuple(rejected)
            except ImageError as error:
                rejected.append((record.path, str(error)))
        path, reason = rejected[0]
        raise CorpusError(f"{len(rejected)} images in a row cannot be read, the first is {path} ({reason})")


def _mix(*numbers: int) -> int:
    """One 63-bit seed of several numbers."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def batches(
    stream: SampleStream, numbers: Iterator[list[SampleNumber]], num_processes: int, pin_memory: bool
) -> Iterator[Batch]:
    """Batches of the samples with these numbers, made by so many processes beside this one (or 0)."""
    return iter(
        DataLoader(
            stream,
            batch_sampler=numbers,  # type: ignore[arg-type]
            num_workers=num_processes,
            collate_fn=_collate,
            pin_memory=pin_memory,
            # Forked workers would inherit the threads and locks of torch and Ray.
            multiprocessing_context="spawn" if num_processes else None,
        )
    )


def _collate(samples: list[Sample]) -> Batch:
    stacked = (torch.stack(parts) for parts in zip(*(sample.views for sample in samples), strict=True))
    return Batch(Views(*stacked), tuple(reject for sample in samples for reject in sample.rejected))
