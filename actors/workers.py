"""The actor that computes: from a chunk's records to the instances in its images.

One process does it all, on its network's device: only records come in, and only packed masks leave.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from actors.reader import ReadCrop, Reader, rejected_outcome
from engine.candidates import (
    Candidates,
    Tile,
    find_candidates,
    group_candidates,
    make_labels,
    refine_candidates,
)
from engine.corpora import Corpus
from engine.encoders import Encoder, load_encoder
from engine.errors import DeviceMemoryError
from engine.instances import Labels, make_outcome
from engine.labelling import find_tile_background, warm_up
from engine.labelling_config import LabellingConfig
from engine.preparation import Crop, PreparationConfig
from engine.proposals.duplicates import merge_outcomes
from engine.read_ahead import read_ahead
from engine.stopwatch import stage
from engine.types import Chunk, ImageRecord, Outcome, Reason

if TYPE_CHECKING:
    from engine.solo.network import SoloOutputs

P = ParamSpec("P")
T = TypeVar("T")

# Batches of crops that wait in memory while another one is computed.
_BATCHES_AHEAD = 2


class Labeller(Protocol):
    """What finds the instances of a chunk's crops."""

    def label(self, crops: Sequence[Crop]) -> list[Labels | Exception]:
        """Labels of each crop of a batch, or why there are none of it."""


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


def _attempt(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Exception:
    """What the function returns, or the error that it raises: one image's must not cost another its row."""
    try:
        return function(*args, **kwargs)
    except Exception as error:  # as in Reader
        return error


class PatchLabeller:
    """Finds instances among the patches of an encoder."""

    def __init__(self, config: LabellingConfig, device: str) -> None:
        self._encoder: Encoder = load_encoder(config.encoder, device, num_threads=1)
        self._config = config
        # Of the image whose tiles come now; its whole has come before them.
        self._background: NDArray[np.bool_] | None = None

    def label(self, crops: Sequence[Crop]) -> list[Labels | Exception]:
        with stage("encode"):
            features = self._encoder.encode([crop.resized_hwc for crop in crops])
        found = [
            _attempt(self._find, crop, features_hwc)
            for crop, features_hwc in zip(crops, features, strict=True)
        ]
        groups = group_candidates([item for item in found if isinstance(item, Candidates)])
        labels = (item for group in groups for item in self._refine(group))
        return [next(labels) if isinstance(item, Candidates) else item for item in found]

    def _find(self, crop: Crop, features_hwc: torch.Tensor) -> Candidates | Labels:
        tile = None
        if crop.is_whole:
            self._background = None
            self._background = find_tile_background(features_hwc, self._config)
        elif self._background is None:
            return Labels(found=Reason.NO_BACKGROUND)
        else:
            tile = Tile(box_xyxy=crop.box_xyxy, background=self._background)
        return find_candidates(features_hwc, crop.resized_hwc, crop.size, self._config, tile)

    def _refine(self, group: Sequence[Candidates]) -> Iterator[Labels | Exception]:
        refined = _attempt(refine_candidates, group, self._config)
        if isinstance(refined, Exception) and len(group) > 1:
            # Whose error that was, each by itself tells.
            for candidates in group:
                yield from self._refine([candidates])
        elif isinstance(refined, Exception):
            yield refined
        else:
            for candidates in refined:
                yield _attempt(make_labels, candidates, self._config)


class NetworkLabeller:
    """Finds instances by a trained network, and by those before it where stability is asked for."""

    def __init__(self, config: LabellingConfig, device: str) -> None:
        # timm, of which networks are made, takes seconds to import.
        from engine.solo.labelling import CheckpointLabeller

        self._labeller = CheckpointLabeller(config, device)

    def label(self, crops: Sequence[Crop]) -> list[Labels | Exception]:
        with stage("network"):
            outputs = self._labeller.look_at(np.stack([crop.resized_hwc for crop in crops]))
        return [_attempt(self._label, outputs, number, crop) for number, crop in enumerate(crops)]

    def _label(self, outputs: Sequence[SoloOutputs], number: int, crop: Crop) -> Labels:
        box_xyxy = None if crop.is_whole else crop.box_xyxy
        return self._labeller.label(outputs, number, crop.resized_hwc, crop.size, box_xyxy)
