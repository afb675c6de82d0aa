"""The stages that compute: a chunk's features, and the instances in them. Rows are those of actors.reader."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from actors.reader import Batch, ChunkResult, Head, Heads, cell, rejected_outcome
from engine.encoders import Encoder, load_encoder
from engine.labelling import (
    LabellingConfig,
    Labels,
    Tile,
    find_tile_background,
    label_features,
    make_outcome,
    warm_up,
)
from engine.stopwatch import stage
from engine.types import Outcome, Reason


class EncoderWorker:
    """Holds the encoder and turns the images of a row into features."""

    def __init__(self, config: LabellingConfig, device: str, num_threads: int) -> None:
        # Ray gives a process with a share of a CPU one thread; and the last bits of sums depend on how many.
        self._encoder: Encoder = load_encoder(config.encoder, device, num_threads)
        self._batch_size = config.encoder.batch_size

    def __call__(self, batch: Batch) -> Batch:
        images = batch["images"][0]
        features = np.zeros((len(images), *self._encoder.grid, self._encoder.feature_size), np.float16)
        # Failed images are encoded as the zeros they are; what a short chunk lacks is not.
        num_images = len(batch["heads"][0].heads)
        for start in range(0, num_images, self._batch_size):
            stop = min(start + self._batch_size, num_images)
            with stage("encode"):
                features[start:stop] = self._encoder.encode(list(images[start:stop])).cpu().numpy()
        return {**batch, "features": features[None]}


class Labeller:
    """Proposes and refines the instances of a row's images."""

    def __init__(self, config: LabellingConfig) -> None:
        torch.set_num_threads(1)
        self._config = config
        warm_up(config)

    def __call__(self, batch: Batch) -> Batch:
        images, features = batch["images"][0], batch["features"][0]
        heads: Heads = batch["heads"][0]
        outcomes: list[Outcome] = []
        background: NDArray[np.bool_] | None = None
        for i, head in enumerate(heads.heads):
            if head.rejected is None and head.box_xyxy is None:
                background = find_tile_background(features[i], self._config)
            # A tile of which nothing is known of the background shows nothing.
            if head.is_repeated or (head.box_xyxy is not None and background is None):
                continue
            outcomes.append(self._label(head, images[i], features[i], background))
        return make_result(batch, outcomes)

    def _label(
        self,
        head: Head,
        image: NDArray[np.uint8],
        features: NDArray[np.float16],
        background: NDArray[np.bool_] | None,
    ) -> Outcome:
        if head.rejected is not None:
            return head.rejected
        tile = None
        if head.box_xyxy is not None and background is not None:
            tile = Tile(box_xyxy=head.box_xyxy, background=background)
        return make_row(head, lambda: label_features(features, image, head.size, self._config, tile))


def make_row(head: Head, find_labels: Callable[[], Labels]) -> Outcome:
    """The row of a crop that can be looked at."""
    try:
        labels = find_labels()
    except Exception as error:  # as in Reader
        detail = f"while labelling: {type(error).__name__}: {error}"
        return rejected_outcome(head.record, Reason.FAILED, detail)
    return make_outcome(head.record, head.size, head.sha256, labels)


def make_result(batch: Batch, outcomes: Iterable[Outcome]) -> Batch:
    """What is left of a row."""
    heads: Heads = batch["heads"][0]
    result = ChunkResult(
        chunk=batch["chunk"][0], part=heads.part, is_last=heads.is_last, outcomes=tuple(outcomes)
    )
    return {"result": cell(result)}
