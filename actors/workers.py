"""The actor that computes: from a chunk's records to the instances in its images.

One process does it all, on its network's device: only records come in, and only packed masks leave.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch

from actors.read_ahead import read_ahead
from actors.reader import ReadCrop, Reader, rejected_outcome
from engine.corpora import Corpus
from engine.errors import DeviceMemoryError
from engine.images.crops import Crop, PreparationConfig
from engine.labelling.config import LabellingConfig
from engine.labelling.duplicates import merge_outcomes
from engine.labelling.labeller import Labeller
from engine.labelling.network_labeller import NetworkLabeller
from engine.labelling.outcomes import Labels, make_outcome
from engine.labelling.patch_labeller import PatchLabeller, warm_up
from engine.types import Chunk, ImageRecord, Outcome, Reason

# Batches of crops that wait in memory while another one is computed.
_BATCHES_AHEAD = 2


class Worker:
    """Holds a network and labels chunks, of which it reads the next while it computes one."""

    def __init__(
        self, corpus: Corpus, config: LabellingConfig, image_size: tuple[int, int], device: str
    ) -> None:
        """`image_size` is the (height, width) that the network takes."""
        preparation = PreparationConfig(
            image_size=image_size,
            keeps_aspect=config.method == "solo",
            decoding=config.decoding,
            tiling=config.tiling,
        )
        self._reader = Reader(corpus, preparation)
        self._config = config
        self._device = device
        self._image_size = image_size
        self._labeller: Labeller
        self._reading, self._computing = threading.Lock(), threading.Lock()

    def start(self) -> None:
        """Load the network, which takes seconds; before anything else. Raises WeightsError, and
        DeviceMemoryError where the GPU has no room for another worker."""
        # The last bits of sums depend on the number of threads, so that is the same on all machines.
        torch.set_num_threads(1)
        make = NetworkLabeller if self._config.method == "solo" else PatchLabeller
        with _device_memory_errors():
            self._labeller = make(self._config, self._device)
            warm_up(self._config, self._device)
            if self._device != "cpu":
                # Takes the memory that a batch takes, so that what has no room shows now.
                height, width = self._image_size
                black = np.zeros((height, width, 3), np.uint8)
                whole = Crop(resized_hwc=black, box_xyxy=(0, 0, width, height), size=self._image_size)
                self._labeller.label([whole])

    def label(self, chunk: Chunk) -> list[Outcome]:
        """A row for each image of the chunk. Two calls at a time overlap: one reads while one computes.

        Raises DeviceMemoryError: this worker is one too many for its GPU.
        """
        # One chunk is read at a time, and whichever is has a consumer or will have one: were both read at
        # once, the one that is not computed could keep the other from its crops.
        self._reading.acquire()
        depth = _BATCHES_AHEAD * self._config.encoder.batch_size
        with (
            read_ahead(self._crops_of_lone_reader(chunk), depth) as crops,
            self._computing,
            _device_memory_errors(),
        ):
            return self.label_crops(crops)

    def _crops_of_lone_reader(self, chunk: Chunk) -> Generator[ReadCrop | Outcome]:
        try:
            yield from self.read(chunk)
        finally:
            self._reading.release()

    def read(self, chunk: Chunk) -> Generator[ReadCrop | Outcome]:
        """The crops of the chunk's images, and the rows of those that cannot be read."""
        return self._reader.crops(chunk)

    def label_crops(self, crops: Iterable[ReadCrop | Outcome]) -> list[Outcome]:
        """A row for each image, of those of its crops."""
        by_image: dict[ImageRecord, list[Outcome]] = {}
        remaining = iter(crops)
        while batch := list(islice(remaining, self._config.encoder.batch_size)):
            seen = [item for item in batch if isinstance(item, ReadCrop)]
            rows = [item for item in batch if isinstance(item, Outcome)]
            labels = self._labeller.label([item.crop for item in seen]) if seen else []
            rows += [_make_row(item, found) for item, found in zip(seen, labels, strict=True)]
            for row in rows:
                by_image.setdefault(row.record, []).append(row)
        return [merge_outcomes(rows, self._config.tiling) for rows in by_image.values()]


@contextmanager
def _device_memory_errors() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(str(error)) from error


def _make_row(read: ReadCrop, labels: Labels | Exception) -> Outcome:
    if isinstance(labels, torch.OutOfMemoryError):
        raise labels
    if isinstance(labels, Exception):
        detail = f"while labelling: {type(labels).__name__}: {labels}"
        return rejected_outcome(read.record, Reason.FAILED, detail)
    return make_outcome(read.record, read.crop.size, read.sha256, labels)
