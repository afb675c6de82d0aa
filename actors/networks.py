"""The stage that computes where a trained network labels: from a chunk's images to the instances in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from actors.reader import Batch, Head, Heads
from actors.workers import make_result, make_row
from engine.labelling import LabellingConfig, warm_up
from engine.solo.labelling import CheckpointLabeller
from engine.solo.network import SoloOutputs
from engine.stopwatch import stage
from engine.types import Outcome


class NetworkWorker:
    """Holds a trained network, and those before it where stability is asked for, and finds instances."""

    def __init__(self, config: LabellingConfig, device: str) -> None:
        torch.set_num_threads(1)  # as in PatchWorker
        self._labeller = CheckpointLabeller(config, device)
        self._batch_size = config.encoder.batch_size
        warm_up(config, device)

    def __call__(self, batch: Batch) -> Batch:
        images = batch["images"][0]
        heads: Heads = batch["heads"][0]
        outcomes: list[Outcome] = []
        for start in range(0, len(heads.heads), self._batch_size):
            part = heads.heads[start : start + self._batch_size]
            # Failed images are looked at as the zeros they are; what a short chunk lacks is not.
            seen = images[start : start + len(part)]
            with stage("network"):
                outputs = self._labeller.look_at(seen)
            for number, head in enumerate(part):
                if not head.is_repeated:
                    outcomes.append(self._label(head, outputs, number, seen[number]))
        return make_result(batch, outcomes)

    def _label(
        self, head: Head, outputs: Sequence[SoloOutputs], number: int, image: NDArray[np.uint8]
    ) -> Outcome:
        if head.rejected is not None:
            return head.rejected
        return make_row(head, lambda: self._labeller.label(outputs, number, image, head.size, head.box_xyxy))
