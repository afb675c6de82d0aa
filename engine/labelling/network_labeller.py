"""Labels from a trained network, and their stability over earlier networks of the same training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.device import autocast, reproducible, upload_images
from engine.errors import WeightsError
from engine.images.crops import Crop, split_batches
from engine.images.resizing import fit_size
from engine.images.tiling import boxes_touch_tile_edge
from engine.labelling.candidates import postprocess_masks
from engine.labelling.config import LabellingConfig
from engine.labelling.duplicates import merge_crops
from engine.labelling.outcomes import Labels, attempt
from engine.masks.packing import make_instances
from engine.refine import refine_masks
from engine.solo.inference import METHOD, Detections, detect, fitted_masks, full_masks, to_inputs
from engine.solo.network import SoloOutputs
from engine.solo.stability import with_stability
from engine.solo.weights import load_network
from engine.stopwatch import stage
from engine.types import Reason


class TrainedNetwork:
    """A trained network that finds the instances of single crops, whole images or tiles.

    Batches are padded with black images to `config.network.batch_size`, so that a crop's labels do not depend
    on how many others there are.
    """

    def __init__(self, weights: str, config: LabellingConfig, device: str) -> None:
        """Load the network of the file `weights`; it detects by `config.detection`, whatever it was trained
        with. Raises WeightsError."""
        self.weights = weights
        self._device = torch.device(device)
        self._network, solo, self.weights_digest = load_network(weights, self._device)
        self._solo = replace(solo, detection=config.detection)
        self._config = config

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the square that crops are fitted into."""
        return self._solo.image_size, self._solo.image_size

    @property
    def settings(self) -> dict[str, Any]:
        """The network's architecture, as JSON can hold it."""
        settings = asdict(self._solo)
        for name in ("detection", "backbone_weights", "seed"):
            settings.pop(name)
        return settings

    @torch.inference_mode()
    def forward(self, squares_bhwc: NDArray[np.uint8]) -> SoloOutputs:
        """The network's outputs for images uint8 (B, S, S, 3), at most a batch of them."""
        network = self._config.network
        inputs = to_inputs(upload_images(squares_bhwc, network.batch_size, self._device))
        with reproducible(self._device), autocast(self._device, network.precision):
            outputs: SoloOutputs = self._network(inputs)
        return outputs

    @torch.inference_mode()
    def process_crop(self, outputs: SoloOutputs, number: int, crop: Crop) -> Labels:
        """Labels of the crop that is image `number` of the batch; those cut by a tile's inner edges are left
        out."""
        answers = (outputs.objectness, outputs.kernels, outputs.mask_features)
        if not all(bool(answer[number].isfinite().all()) for answer in answers):
            return Labels(reason=Reason.NON_FINITE)
        with stage("detect"):
            detections = detect(outputs, number, self._solo.detection)
        if len(detections.scores) == 0:
            return Labels(reason=Reason.NO_FOREGROUND)
        x0, y0, x1, y1 = crop.box_xyxy
        masks: Iterable[NDArray[np.bool_]] = full_masks(detections, (y1 - y0, x1 - x0), self._solo)
        scores = detections.scores.cpu().numpy()
        if self._config.uses_crf:
            masks, scores = self._refine(detections, scores, crop)
        with stage("resize masks, run lengths"):
            instances = make_instances(masks, scores, crop.size, METHOD, crop.box_xyxy)
        if not crop.is_whole:
            is_cut = boxes_touch_tile_edge(instances.boxes_xyxy, crop.box_xyxy, crop.size)
            instances = instances.keep(~is_cut)
        return Labels(instances=instances) if len(instances) > 0 else Labels(reason=Reason.REFINED_AWAY)

    def _refine(
        self, detections: Detections, scores: NDArray[np.float32], crop: Crop
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Refined masks at the size of the image within its square, and the scores of those that are kept."""
        x0, y0, x1, y1 = crop.box_xyxy
        height, width = fit_size((y1 - y0, x1 - x0), self._solo.image_size)
        image_hwc = np.ascontiguousarray(crop.resized_hwc[:height, :width])
        coarse = fitted_masks(detections, (height, width), self._solo)
        with stage("refine"):
            refined = refine_masks(image_hwc, coarse, self._config.crf, device=str(self._device))
            return postprocess_masks(coarse, refined, scores, self._config)


def load_networks(config: LabellingConfig, device: str) -> list[TrainedNetwork]:
    """The networks of `config.network`, earlier ones first, the one that labels last. Raises WeightsError."""
    if config.network.weights is None:
        raise WeightsError("no trained network is given: set network.weights")
    weights = (*config.network.earlier_weights, config.network.weights)
    return [TrainedNetwork(uri, config, device) for uri in weights]


class NetworkLabeller:
    """The networks along one training: the last one labels, the earlier ones measure stability.

    Without earlier networks, stabilities are unknown (NaN). A `Labeller`.
    """

    def __init__(self, config: LabellingConfig, networks: Sequence[TrainedNetwork]) -> None:
        """Raises WeightsError if the networks take images of different sizes."""
        *self._earlier, self._last = networks
        for network in self._earlier:
            if network.image_size != self._last.image_size:
                raise WeightsError(
                    f"the network {network.weights!r} takes images of {network.image_size}, the last one of "
                    f"{self._last.image_size}: give networks of one training"
                )
        self._config = config

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the square that crops are fitted into."""
        return self._last.image_size

    @property
    def weights_digest(self) -> str:
        """The digest of the last network."""
        return self._last.weights_digest

    @property
    def settings(self) -> dict[str, Any]:
        """The last network's architecture and the digests of the earlier ones, as JSON can hold them."""
        earlier = [network.weights_digest for network in self._earlier]
        return {"network": self._last.settings} | ({"earlier_networks": earlier} if earlier else {})

    def generate(self, crops: Iterable[Crop]) -> Iterator[Labels | Exception]:
        """Labels of each image, or the error that it raised; see `Labeller.generate`."""
        batches = split_batches(crops, self._config.batch_size)
        labels = chain.from_iterable(map(self._process_batch, batches))
        return merge_crops(labels, self._config.tiling)

    def _process_batch(self, crops: Sequence[Crop]) -> Iterator[tuple[Crop, Labels | Exception]]:
        squares_bhwc = np.stack([crop.resized_hwc for crop in crops])
        with stage("network"):
            outputs = [network.forward(squares_bhwc) for network in (*self._earlier, self._last)]
        for number, crop in enumerate(crops):
            yield crop, attempt(self._process_crop, outputs, number, crop)

    def _process_crop(self, outputs: Sequence[SoloOutputs], number: int, crop: Crop) -> Labels:
        """Labels of a crop by the last network, with their stability over the earlier ones."""
        *before, last = outputs
        labels = self._last.process_crop(last, number, crop)
        if not before or labels.instances is None:
            return labels
        seen_before = (
            network.process_crop(output, number, crop).instances
            for network, output in zip(self._earlier, before, strict=True)
        )
        earlier = [instances for instances in seen_before if instances is not None]
        return replace(labels, instances=with_stability(labels.instances, earlier))
