"""The stage that computes: from a chunk's images to the instances in them.

Rows are those of actors.reader.
"""

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


class PatchWorker:
    """Holds the encoder and finds the instances of a row's images among its patches.

    One process does it all, on the encoder's device, so that only packed masks travel.
    """

    def __init__(self, config: LabellingConfig, device: str) -> None:
        # The last bits of sums depend on the number of threads, so that is the same on all machines.
        self._encoder: Encoder = load_encoder(config.encoder, device, num_threads=1)
        self._config = config
        warm_up(config, device)

    def __call__(self, batch: Batch) -> Batch:
        images = batch["images"][0]
        heads: Heads = batch["heads"][0]
        outcomes: list[Outcome] = []
        background: NDArray[np.bool_] | None = None
        batch_size = self._config.encoder.batch_size
        for start in range(0, len(heads.heads), batch_size):
            part = heads.heads[start : start + batch_size]
            # Failed images are encoded as the zeros they are; what a short chunk lacks is not.
            seen = images[start : start + len(part)]
            with stage("encode"):
                features = self._encoder.encode(list(seen))
            for head, image, features_hwc in zip(part, seen, features, strict=True):
                if head.rejected is None and head.box_xyxy is None:
                    background = find_tile_background(features_hwc, self._config)
                # A tile of which nothing is known of the background shows nothing.
                if not head.is_repeated and (head.box_xyxy is None or background is not None):
                    outcomes.append(self._label(head, image, features_hwc, background))
        return make_result(batch, outcomes)

    def _label(
        self,
        head: Head,
        image: NDArray[np.uint8],
        features_hwc: torch.Tensor,
        background: NDArray[np.bool_] | None,
    ) -> Outcome:
        if head.rejected is not None:
            return head.rejected
        tile = None
        if head.box_xyxy is not None and background is not None:
            tile = Tile(box_xyxy=head.box_xyxy, background=background)
        return make_row(head, lambda: label_features(features_hwc, image, head.size, self._config, tile))


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
