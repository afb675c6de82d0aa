"""Labels from patches: features, background, proposals, scores, refinement.

Read from top to bottom:

    PatchLabeller.generate    crops of images to the labels of each image
    label_encoded             the same from features on
    process_image             an image's crops, its background handed from the whole to its tiles
    process_tile              find_candidates, with the whole image's background
    _process_batch            crops, maybe of several images, to features
    refine_batches            candidates, maybe of several images, to labels
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.encoders import Encoder
from engine.images.crops import Crop, group_by_image, split_batches
from engine.labelling.candidates import (
    Candidates,
    Refine,
    find_candidates,
    group_candidates,
    make_labels,
    refine_candidates,
)
from engine.labelling.config import LabellingConfig
from engine.labelling.duplicates import merge_crops
from engine.labelling.outcomes import Labels, attempt
from engine.proposals.patches import features_tensor
from engine.proposals.promerge import find_background
from engine.refine import refine_images
from engine.stopwatch import stage
from engine.types import Reason

Features = NDArray[np.floating] | torch.Tensor
"""Features (h, w, C) of one crop. A tensor is used on its device."""


class PatchLabeller:
    """Finds instances among the patches of an encoder; a `Labeller`."""

    def __init__(self, config: LabellingConfig, encoder: Encoder, refine: Refine = refine_images) -> None:
        self._config = config
        self._encoder = encoder
        self._refine = refine

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) that crops are resized to."""
        return self._encoder.image_size

    @property
    def weights_digest(self) -> str:
        """The digest of the encoder's weights."""
        return self._encoder.weights_digest

    @property
    def settings(self) -> dict[str, Any]:
        """Empty: the configuration says everything about an encoder."""
        return {}

    def generate(self, crops: Iterable[Crop]) -> Iterator[Labels | Exception]:
        """Labels of each image, or the error that it raised; see `Labeller.generate`."""
        batches = split_batches(crops, self._config.batch_size)
        encoded = chain.from_iterable(map(self._process_batch, batches))
        return label_encoded(encoded, self._config, self._refine)

    def _process_batch(self, crops: Sequence[Crop]) -> Iterator[tuple[Crop, torch.Tensor]]:
        with stage("encode"):
            features_bhwc = self._encoder.encode([crop.resized_hwc for crop in crops])
        return zip(crops, features_bhwc, strict=True)


def label_encoded(
    encoded: Iterable[tuple[Crop, Features]], config: LabellingConfig, refine: Refine = refine_images
) -> Iterator[Labels | Exception]:
    """Labels of each image, or the error that it raised, from the features of its crops.

    Of each image the whole comes first, then its tiles. Crops are taken as they are needed: a batch of them
    is in memory at a time, whatever the number of tiles. Instances are ordered by score, area and first
    pixel (docs/methods.md, 3).
    """
    found = chain.from_iterable(process_image(crops, config) for crops in group_by_image(encoded))
    return merge_crops(refine_batches(found, config, refine), config.tiling)


def process_image(
    crops: Iterator[tuple[Crop, Features]], config: LabellingConfig
) -> Iterator[tuple[Crop, Candidates | Labels | Exception]]:
    """Candidates of each crop of one image; its background, as seen in the whole, is handed to the tiles."""
    whole, features_hwc = next(crops)
    yield whole, attempt(find_candidates, whole, features_hwc, None, config)
    background = attempt(find_tile_background, features_hwc, config)
    for tile, tile_features_hwc in crops:
        yield tile, attempt(process_tile, tile, tile_features_hwc, background, config)


def process_tile(
    tile: Crop,
    features_hwc: Features,
    background: NDArray[np.bool_] | Exception | None,
    config: LabellingConfig,
) -> Candidates | Labels:
    """Candidates of a tile, given the background of the whole image or the error that finding it raised."""
    if isinstance(background, Exception):
        raise background
    if background is None:
        return Labels(reason=Reason.NO_BACKGROUND)
    return find_candidates(tile, features_hwc, background, config)


def find_tile_background(features_hwc: Features, config: LabellingConfig) -> NDArray[np.bool_] | None:
    """Background, bool (h, w), of a whole image with features (h, w, C), for its tiles.

    None if there are no tiles, or if they are to be skipped: the background is too small to be trusted.
    """
    if config.tiling.tile is None or not bool(torch.isfinite(features_tensor(features_hwc)).all()):
        return None
    return find_background(features_hwc, config.promerge)


def refine_batches(
    found: Iterable[tuple[Crop, Candidates | Labels | Exception]], config: LabellingConfig, refine: Refine
) -> Iterator[tuple[Crop, Labels | Exception]]:
    """Labels of each crop, in order; candidates of a batch of crops are refined together."""
    for batch in split_batches(found, config.batch_size):
        candidates = [item for _, item in batch if isinstance(item, Candidates)]
        groups = group_candidates(candidates)
        labels = (item for group in groups for item in _finish(group, config, refine))
        for crop, item in batch:
            yield crop, next(labels) if isinstance(item, Candidates) else item


def _finish(
    group: Sequence[Candidates], config: LabellingConfig, refine: Refine
) -> Iterator[Labels | Exception]:
    """Labels of each crop of a group, or its own error: after one, the crops are refined one by one."""
    refined = attempt(refine_candidates, group, config, refine)
    if isinstance(refined, Exception) and len(group) > 1:
        for candidates in group:
            yield from _finish([candidates], config, refine)
    elif isinstance(refined, Exception):
        yield refined
    else:
        for candidates in refined:
            yield attempt(make_labels, candidates, config)
