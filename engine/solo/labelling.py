"""Label images by a trained network: rows as those of the other methods, without an encoder and proposals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.candidates import settle_masks
from engine.decoding import fit_size
from engine.encoders.precision import resolve_precision
from engine.errors import WeightsError
from engine.instances import Labels, make_instances
from engine.labelling_config import LabellingConfig
from engine.precision import autocast, reproducible
from engine.refine import refine_masks
from engine.selftraining.stability import with_stability
from engine.solo.inference import METHOD, detect, fitted_masks, full_masks, to_inputs
from engine.solo.network import SoloOutputs
from engine.solo.weights import load_network
from engine.stopwatch import stage
from engine.tiling import Box, boxes_touch_inner_edges
from engine.transfer import upload_images
from engine.types import Instances, Reason


class SoloLabeller:
    """A trained network, and how its answers become the labels of whole images and of tiles.

    Batches are filled up with black images to the encoder's `batch_size`, so that an image's labels do not
    depend on how many others there are.
    """

    def __init__(self, config: LabellingConfig, device: str) -> None:
        """Loads the network of `config.encoder.weights`; detection is as `config` says, whatever the network
        was measured with. Raises WeightsError."""
        self._device = torch.device(device)
        self._network, solo, self.weights_digest = load_network(config.encoder.weights, self._device)
        self._solo = replace(solo, detection=config.detection)
        self._config = config
        self._precision = resolve_precision(config.encoder.precision, self._device)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the square that images should be fitted into."""
        return self._solo.image_size, self._solo.image_size

    @property
    def settings(self) -> dict[str, Any]:
        """What the network is, as JSON can hold it; of what it was trained from, its file knows no more."""
        settings = asdict(self._solo)
        for name in ("detection", "backbone_weights", "seed"):
            settings.pop(name)
        return settings

    @torch.inference_mode()
    def look_at(self, squares_bhwc: NDArray[np.uint8]) -> SoloOutputs:
        """What the network says of images uint8 (B, S, S, 3), at most a batch of them."""
        inputs = to_inputs(upload_images(squares_bhwc, self._config.encoder.batch_size, self._device))
        with reproducible(self._device), autocast(self._device, self._precision):
            outputs: SoloOutputs = self._network(inputs)
        return outputs

    @torch.inference_mode()
    def label(
        self,
        outputs: SoloOutputs,
        number: int,
        square_hwc: NDArray[np.uint8],
        size: tuple[int, int],
        box_xyxy: Box | None = None,
    ) -> Labels:
        """Labels of the image `number` of a batch, which `square_hwc` (S, S, 3) shows: an image of `size` =
        (height, width), or its tile `box_xyxy`, which leaves out what its inner edges cut."""
        answers = (outputs.objectness, outputs.kernels, outputs.mask_features)
        if not all(bool(answer[number].isfinite().all()) for answer in answers):
            return Labels(found=Reason.NON_FINITE)
        with stage("detect"):
            detections = detect(outputs, number, self._solo.detection)
        scores = detections.scores.cpu().numpy()
        if len(scores) == 0:
            return Labels(found=Reason.NO_FOREGROUND)
        x0, y0, x1, y1 = box_xyxy or (0, 0, size[1], size[0])
        seen_size = (y1 - y0, x1 - x0)
        masks: Iterable[NDArray[np.bool_]] = full_masks(detections, seen_size, self._solo)
        if self._config.uses_crf:
            height, width = fit_size(seen_size, self._solo.image_size)
            part_hwc = np.ascontiguousarray(square_hwc[:height, :width])
            fitted = fitted_masks(detections, (height, width), self._solo)
            with stage("refine"):
                refined = refine_masks(part_hwc, fitted, self._config.crf, device=str(self._device))
                masks, scores = settle_masks(fitted, refined, scores, self._config)
        with stage("resize masks, run lengths"):
            instances = make_instances(masks, scores, size, METHOD, box_xyxy)
        if box_xyxy is not None:
            instances = instances.keep(~boxes_touch_inner_edges(instances.boxes_xyxy, box_xyxy, size))
        return Labels(found=instances if len(instances) > 0 else Reason.REFINED_AWAY)


class CheckpointLabeller:
    """The networks along one training: the last one labels, those before it tell how stable that is.

    Without `config.earlier_weights` it labels as the last one by itself, and stabilities stay unknown.
    """

    def __init__(self, config: LabellingConfig, device: str) -> None:
        """Raises WeightsError, also where the networks do not take images of one size."""
        self._earlier = [
            SoloLabeller(replace(config, encoder=replace(config.encoder, weights=weights)), device)
            for weights in config.earlier_weights
        ]
        self._last = SoloLabeller(config, device)
        for labeller, weights in zip(self._earlier, config.earlier_weights, strict=True):
            if labeller.image_size != self._last.image_size:
                raise WeightsError(
                    f"the network {weights!r} takes images of {labeller.image_size}, the last one of "
                    f"{self._last.image_size}: give networks of one training"
                )

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the square that images should be fitted into."""
        return self._last.image_size

    @property
    def weights_digest(self) -> str:
        """The digest of the last network."""
        return self._last.weights_digest

    @property
    def settings(self) -> dict[str, Any]:
        """What the last network is, and the digests of those before it, as JSON can hold them."""
        earlier = [labeller.weights_digest for labeller in self._earlier]
        return {"network": self._last.settings} | ({"earlier_networks": earlier} if earlier else {})

    def look_at(self, squares_bhwc: NDArray[np.uint8]) -> list[SoloOutputs]:
        """What each network says of images uint8 (B, S, S, 3), at most a batch of them; the last one last."""
        return [labeller.look_at(squares_bhwc) for labeller in (*self._earlier, self._last)]

    def label(
        self,
        outputs: Sequence[SoloOutputs],
        number: int,
        square_hwc: NDArray[np.uint8],
        size: tuple[int, int],
        box_xyxy: Box | None = None,
    ) -> Labels:
        """Labels as `SoloLabeller.label` gives them, with their stability."""
        *before, last = outputs
        labels = self._last.label(last, number, square_hwc, size, box_xyxy)
        if not before or not isinstance(labels.found, Instances):
            return labels
        found = (
            labeller.label(output, number, square_hwc, size, box_xyxy).found
            for labeller, output in zip(self._earlier, before, strict=True)
        )
        earlier = [instances for instances in found if isinstance(instances, Instances)]
        return replace(labels, found=with_stability(labels.found, earlier))
