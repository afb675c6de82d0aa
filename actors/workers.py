"""The stages that compute: a chunk's features, and the instances in them. Rows are those of actors.reader."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from actors.reader import Batch, ChunkResult, Head, Heads, cell, rejected_outcome
from engine.encoders import Encoder, load_encoder
from engine.labelling import LabellingConfig, label_features, make_outcome, warm_up
from engine.preparation import PreparedImage
from engine.types import Chunk, Outcome, Reason


class EncoderWorker:
    """Holds the encoder and turns the images of a chunk into features."""

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
            features[start:stop] = self._encoder.encode(list(images[start:stop])).cpu().numpy()
        return {**batch, "features": features[None]}


class Labeller:
    """Proposes and refines the instances of a chunk's images."""

    def __init__(self, config: LabellingConfig) -> None:
        torch.set_num_threads(1)
        self._config = config
        warm_up(config)

    def __call__(self, batch: Batch) -> Batch:
        images, features = batch["images"][0], batch["features"][0]
        chunk: Chunk = batch["chunk"][0]
        heads: Heads = batch["heads"][0]
        outcomes = [self._label(head, images[i], features[i]) for i, head in enumerate(heads.heads)]
        return {"result": cell(ChunkResult(chunk=chunk, outcomes=tuple(outcomes)))}

    def _label(self, head: Head, image: NDArray[np.uint8], features: NDArray[np.float16]) -> Outcome:
        if head.rejected is not None:
            return head.rejected
        try:
            labels = label_features(features, image, head.size, self._config)
        except Exception as error:  # as in Reader
            detail = f"while labelling: {type(error).__name__}: {error}"
            return rejected_outcome(head.record, Reason.FAILED, detail)
        prepared = PreparedImage(resized_hwc=image, size=head.size, sha256=head.sha256)
        return make_outcome(head.record, prepared, labels)
