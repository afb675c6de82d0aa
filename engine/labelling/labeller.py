"""The one path from images to their labels; workers, sweeps and tests all take it.

`load_labeller` makes the configured method ready on a device. Its `generate` turns the crops of many images
into the labels of each image; see `PatchLabeller` and `NetworkLabeller`. `label_images` does so for images in
memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.encoders import FeatureStatistics, load_encoder
from engine.images.crops import Crop, cut_crops
from engine.labelling.config import LabellingConfig
from engine.labelling.methods import propose_masks
from engine.labelling.outcomes import Labels
from engine.labelling.patch_labeller import PatchLabeller
from engine.refine import refine_masks


class Labeller(Protocol):
    """Finds the instances of images, by an encoder's patches or by a trained network."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) that crops are resized to."""

    @property
    def weights_digest(self) -> str:
        """The digest of the weights, SHA-256 in hex."""

    @property
    def settings(self) -> dict[str, Any]:
        """What a version records about the network beside the configuration, as JSON can hold it."""

    def generate(self, crops: Iterable[Crop]) -> Iterator[Labels | Exception]:
        """Labels of each image, in order, or the error that it raised.

        `crops` holds each image's whole, then its tiles; they are taken as they are needed. Crops of several
        images share a batch. Raises torch.OutOfMemoryError, for which no image is to blame.
        """


def load_labeller(
    config: LabellingConfig, device: str, statistics: FeatureStatistics | None = None
) -> Labeller:
    """The labeller that `config` describes, ready on `device`.

    `statistics` of the corpus centre an encoder's features. Raises WeightsError, ConfigurationError.
    """
    if not config.uses_network:
        return PatchLabeller(config, load_encoder(config.encoder, device, statistics=statistics))
    # timm, which makes the networks, takes seconds to import.
    from engine.labelling.network_labeller import NetworkLabeller, load_networks

    return NetworkLabeller(config, load_networks(config, device))


def label_images(
    images_hwc: Sequence[NDArray[np.uint8]], labeller: Labeller, config: LabellingConfig
) -> list[Labels]:
    """Labels of each image, uint8 RGB (H, W, 3) of any sizes, tiles included; raises the first error."""
    preparation = config.preparation(labeller.image_size)
    crops = (crop for image_hwc in images_hwc for crop in cut_crops(image_hwc, preparation))
    labels = []
    for found in labeller.generate(crops):
        if isinstance(found, Exception):
            raise found
        labels.append(found)
    return labels


def warm_up(config: LabellingConfig, device: str = "cpu") -> None:
    """Load compiled kernels, so that the first image does not wait for them."""
    black = np.zeros((8, 8, 3), np.uint8)
    if not config.uses_network:
        propose_masks(np.ones((4, 4, 1), np.float16), black, config)
    if config.uses_crf:
        for num_masks in (1, 8, 16):  # the numba backend has code of its own for each
            refine_masks(black, np.zeros((num_masks, 8, 8), bool), config.crf, device=device)
