"""The actor that labels: from a chunk's records to the rows of its images.

One process does it all, on its network's device: only records come in, and only packed masks leave.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from actors.read_ahead import read_ahead
from actors.reader import ReadCrop, Reader
from engine.corpora import Corpus
from engine.errors import DeviceMemoryError
from engine.images.crops import Crop
from engine.labelling.config import LabellingConfig
from engine.labelling.labeller import Labeller, load_labeller, warm_up
from engine.labelling.outcomes import make_outcome
from engine.types import Chunk, ImageRecord, Outcome

# Batches of crops that are read while another one is computed.
_BATCHES_AHEAD = 2


class Worker:
    """Holds a labeller and labels chunks; it reads the next chunk while it computes one."""

    def __init__(
        self,
        corpus: Corpus,
        config: LabellingConfig,
        image_size: tuple[int, int],
        device: str,
        load: Callable[[LabellingConfig, str], Labeller] = load_labeller,
    ) -> None:
        """`image_size` is the (height, width) that the labeller of `load(config, device)` takes."""
        self._reader = Reader(corpus, config.preparation(image_size))
        self._config = config
        self._image_size = image_size
        self._device = device
        self._load = load
        self._labeller: Labeller
        self._reading, self._computing = threading.Lock(), threading.Lock()

    def start(self) -> None:
        """Load the labeller, which takes seconds; call it before anything else.

        Raises WeightsError, and DeviceMemoryError if the GPU has no room for another worker.
        """
        # The last bits of sums depend on the number of threads, which is therefore the same on all machines.
        torch.set_num_threads(1)
        with _device_memory_errors():
            self._labeller = self._load(self._config, self._device)
            warm_up(self._config, self._device)
            if self._device != "cpu":
                # Allocates what a batch needs, so that a lack of memory shows now.
                black = np.zeros((*self._image_size, 3), np.uint8)
                list(self._labeller.generate([Crop.whole(black, self._image_size)]))

    def label(self, chunk: Chunk) -> list[Outcome]:
        """A row for each image of the chunk. Two concurrent calls overlap: one reads while one computes.

        Raises DeviceMemoryError: this worker is one too many for its GPU.
        """
        # Only one chunk is read at a time, and its reader always has a consumer, now or later. If two were
        # read at once, the one that is not computed could hold up the other.
        self._reading.acquire()
        depth = _BATCHES_AHEAD * self._config.batch_size
        with (
            read_ahead(self._read_alone(chunk), depth) as crops,
            self._computing,
            _device_memory_errors(),
        ):
            return self.label_crops(crops)

    def _read_alone(self, chunk: Chunk) -> Generator[ReadCrop | Outcome]:
        try:
            yield from self.read(chunk)
        finally:
            self._reading.release()

    def read(self, chunk: Chunk) -> Generator[ReadCrop | Outcome]:
        """Crops of the chunk's images, and the rows of images that cannot be read."""
        return self._reader.crops(chunk)

    def label_crops(self, read: Iterable[ReadCrop | Outcome]) -> list[Outcome]:
        """A row for each image of which `read` holds crops, or the row of an image that could not be read."""
        images: list[tuple[ImageRecord, tuple[int, int], str]] = []
        rejected: dict[ImageRecord, Outcome] = {}

        def crops() -> Iterator[Crop]:
            for item in read:
                if isinstance(item, Outcome):
                    rejected[item.record] = item
                    continue
                if item.crop.is_whole:
                    images.append((item.record, item.crop.size, item.sha256))
                yield item.crop

        labels = list(self._labeller.generate(crops()))
        rows = {image[0]: make_outcome(*image, found) for image, found in zip(images, labels, strict=True)}
        # An image may turn out to be unreadable after some of its crops.
        return list((rows | rejected).values())


@contextmanager
def _device_memory_errors() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(str(error)) from error
