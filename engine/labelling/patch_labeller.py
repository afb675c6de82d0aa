"""Label images: features, proposals, scores, refinement. The whole method on one page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from engine.encoders import Encoder, load_encoder
from engine.images.crops import Crop, PreparationConfig, cut_crops
from engine.labelling.candidates import (
    Candidates,
    Tile,
    find_candidates,
    group_candidates,
    make_labels,
    propose_masks,
    refine_candidates,
)
from engine.labelling.config import LabellingConfig
from engine.labelling.duplicates import merge_results
from engine.labelling.labeller import attempt
from engine.labelling.outcomes import Labels
from engine.proposals.patches import features_tensor
from engine.proposals.promerge import find_background
from engine.refine import refine_masks
from engine.stopwatch import stage
from engine.types import Reason


def label_images(
    images_hwc: Sequence[NDArray[np.uint8]], encoder: Encoder, config: LabellingConfig
) -> list[Labels]:
    """Labels of every image (H, W, 3) of uint8 RGB, by a method of patches; see engine.solo.labelling."""
    preparation = PreparationConfig(
        image_size=encoder.image_size, decoding=config.decoding, tiling=config.tiling
    )
    crops = ((i, crop) for i, image in enumerate(images_hwc) for crop in cut_crops(image, preparation))
    results: list[list[Labels]] = [[] for _ in images_hwc]
    background: NDArray[np.bool_] | None = None
    while batch := list(islice(crops, config.encoder.batch_size)):
        features = encoder.encode([crop.resized_hwc for _, crop in batch])
        for (i, crop), features_hwc in zip(batch, features, strict=True):
            tile = None
            if crop.is_whole:
                background = find_tile_background(features_hwc, config)
            elif background is None:
                continue
            else:
                tile = Tile(box_xyxy=crop.box_xyxy, background=background)
            results[i].append(label_features(features_hwc, crop.resized_hwc, crop.size, config, tile))
    return [
        replace(labels[0], found=merge_results([crop.found for crop in labels], config.tiling))
        for labels in results
    ]


def find_tile_background(
    features_hwc: NDArray[np.floating] | torch.Tensor, config: LabellingConfig
) -> NDArray[np.bool_] | None:
    """The background (h, w) that a whole image's features (h, w, C) show to its tiles; None: look at none."""
    if config.tiling.tile is None or not bool(torch.isfinite(features_tensor(features_hwc)).all()):
        return None
    return find_background(features_hwc, config.promerge)


def label_features(
    features_hwc: NDArray[np.floating] | torch.Tensor,
    resized_hwc: NDArray[np.uint8],
    size: tuple[int, int],
    config: LabellingConfig,
    tile: Tile | None = None,
) -> Labels:
    """Labels of one image at `size` = (height, width).

    `features_hwc` (h, w, C) are the encoder's features of `resized_hwc`, uint8 RGB at the encoder's size: the
    whole image, or the `tile`, which leaves out what its inner edges cut. A tensor is worked with on its
    device.
    Instances are ordered by score, area and first pixel (METHODS 3).
    """
    found = find_candidates(features_hwc, resized_hwc, size, config, tile)
    if isinstance(found, Labels):
        return found
    (refined,) = refine_candidates([found], config)
    return make_labels(refined, config)


def warm_up(config: LabellingConfig, device: str = "cpu") -> None:
    """Do now what the first image of a process would wait for: loading compiled code."""
    if config.method != "solo":
        propose_masks(np.ones((4, 4, 1), np.float16), (4, 4), config)
    if config.uses_crf:
        image = np.zeros((8, 8, 3), np.uint8)
        for num_masks in (1, 8, 16):  # the numba backend has code of its own for each
            refine_masks(image, np.zeros((num_masks, 8, 8), bool), config.crf, device=device)


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
            attempt(self._find, crop, features_hwc)
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
        refined = attempt(refine_candidates, group, self._config)
        if isinstance(refined, Exception) and len(group) > 1:
            # Whose error that was, each by itself tells.
            for candidates in group:
                yield from self._refine([candidates])
        elif isinstance(refined, Exception):
            yield refined
        else:
            for candidates in refined:
                yield attempt(make_labels, candidates, self._config)
