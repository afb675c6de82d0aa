"""Label images that are in memory, without a corpus, a store or Ray."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.encoders import FeatureStatistics
from engine.labelling.calibration import calibrate
from engine.labelling.config import LabellingConfig
from engine.labelling.labeller import Labeller, label_images, load_labeller
from engine.masks.instances import Instances
from engine.types import ImageRecord


def label_arrays(
    images_hwc: Sequence[NDArray[np.uint8]], config: LabellingConfig, device: str = "cpu"
) -> list[Instances]:
    """Instances of each image, uint8 RGB (H, W, 3) of any sizes, best first; N may be 0.

    Settings that depend on the images, such as centring "auto", are chosen from `images_hwc`, as a label job
    chooses them from its corpus. A single image without tiles is encoded in a batch of one, not of eight: its
    features, and so its labels, may differ from a job's by rounding.

    Raises ValueError for another shape or dtype, ConfigurationError, WeightsError, or the error of the first
    image that fails.
    """
    for image_hwc in images_hwc:
        if image_hwc.dtype != np.uint8 or image_hwc.ndim != 3 or image_hwc.shape[2] != 3:
            raise ValueError(f"images are uint8 (H, W, 3), got {image_hwc.dtype} {image_hwc.shape}")
    if not images_hwc:
        return []
    if len(images_hwc) == 1 and config.tiling.tile is None:
        config = replace(config, encoder=replace(config.encoder, batch_size=1))
    statistics = None
    if not config.uses_network:
        calibration = calibrate(_ArrayCorpus(images_hwc), config, device)
        config, statistics = calibration.apply(config), calibration.statistics
    labels = label_images(images_hwc, _load(config, device, statistics), config)
    return [
        found.instances or Instances(size=(image.shape[0], image.shape[1]), method=config.method)
        for image, found in zip(images_hwc, labels, strict=True)
    ]


@lru_cache(maxsize=1)
def _load(config: LabellingConfig, device: str, statistics: FeatureStatistics | None) -> Labeller:
    """The labeller, kept for the next call: a large encoder takes seconds to load."""
    return load_labeller(config, device, statistics)


class _ArrayCorpus:
    """Images in memory as a corpus, which calibration reads a sample of; files are PNG."""

    kind: Literal["folder"] = "folder"
    uri = "memory:"

    def __init__(self, images_hwc: Sequence[NDArray[np.uint8]]) -> None:
        self._images_hwc = images_hwc

    def records(self, after: ImageRecord | None = None) -> Iterator[ImageRecord]:
        start = 0 if after is None else int(after.path) + 1
        for number in range(start, len(self._images_hwc)):
            yield ImageRecord(image_id=str(number), path=str(number))

    def read(self, record: ImageRecord) -> bytes:
        sink = io.BytesIO()
        Image.fromarray(self._images_hwc[int(record.path)]).save(sink, "PNG", compress_level=0)
        return sink.getvalue()
