"""Label images: features, proposals, scores, refinement. The whole method on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from engine.boxes import mask_boxes_xyxy
from engine.decoding import DecodingConfig, resize_image
from engine.encoders import Encoder, EncoderConfig
from engine.errors import ConfigurationError
from engine.masks import encode_rles, fill_holes, keep_large_components, paired_ious, resize_masks
from engine.preparation import PreparedImage
from engine.proposals.mask_filter import MaskFilterConfig, score_masks
from engine.proposals.multicut import MultiCutConfig, run_multicut
from engine.proposals.promerge import ProMergeConfig, run_promerge
from engine.refine import CrfConfig, refine_masks
from engine.types import ImageRecord, Instances, Optimality, Outcome, Reason, Status


@dataclass(frozen=True, kw_only=True)
class LabellingConfig:
    """Everything that decides which labels an image gets."""

    method: Literal["promerge", "multicut"] = "promerge"
    """How instances are proposed: what stands out from a common background, or the parts of a partition."""
    refine: Literal["crf", "none"] = "crf"
    """How proposals are brought to the image's edges: a dense CRF, or not at all."""
    min_refined_iou: float = 0.5
    """A mask that the CRF changes to an IoU below this is dropped."""
    component_fraction: float = 0.5
    """After the CRF, components of at least this share of a mask's largest stay."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    promerge: ProMergeConfig = field(default_factory=ProMergeConfig)
    multicut: MultiCutConfig = field(default_factory=MultiCutConfig)
    mask_filter: MaskFilterConfig = field(default_factory=MaskFilterConfig)
    crf: CrfConfig = field(default_factory=CrfConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    def __post_init__(self) -> None:
        for name in ("min_refined_iou", "component_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"{name} is a share, 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """What became of an image's features: instances, or the reason why there are none."""

    found: Instances | Reason
    optimality: Optimality | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Proposals:
    """Masks over patches, bool (N, h, w), before scores and refinement; `skipped` says why N is 0."""

    masks: NDArray[np.bool_]
    skipped: Reason | None
    optimality: Optimality | None = None


def label_images(
    images_hwc: Sequence[NDArray[np.uint8]], encoder: Encoder, config: LabellingConfig
) -> list[Labels]:
    """Labels of every image (H, W, 3) of uint8 RGB."""
    results: list[Labels] = []
    for start in range(0, len(images_hwc), config.encoder.batch_size):
        batch = images_hwc[start : start + config.encoder.batch_size]
        resized = [resize_image(image, encoder.image_size) for image in batch]
        features = encoder.encode(resized)
        for i, image in enumerate(batch):
            size = (image.shape[0], image.shape[1])
            results.append(label_features(features[i], resized[i], size, config))
    return results


def label_features(
    features_hwc: NDArray[np.floating] | torch.Tensor,
    resized_hwc: NDArray[np.uint8],
    size: tuple[int, int],
    config: LabellingConfig,
) -> Labels:
    """Labels of one image at `size` = (height, width).

    `features_hwc` (h, w, C) are the encoder's features of `resized_hwc`, uint8 RGB at the encoder's size.
    Instances are ordered by score, area and first pixel (METHODS 3).
    """
    if not bool(torch.isfinite(torch.as_tensor(features_hwc)).all()):
        return Labels(found=Reason.NON_FINITE)
    proposed = propose_masks(features_hwc, config)
    if proposed.skipped is not None:
        return Labels(found=proposed.skipped, optimality=proposed.optimality)
    scores = score_masks(features_hwc, proposed.masks, config.mask_filter)
    masks = resize_masks(proposed.masks, (resized_hwc.shape[0], resized_hwc.shape[1]))
    if config.refine == "crf":
        masks, scores = refine_proposals(resized_hwc, masks, scores, config)
    instances = make_instances(masks, scores, size, config.method)
    found = instances if len(instances) > 0 else Reason.REFINED_AWAY
    return Labels(found=found, optimality=proposed.optimality)


def propose_masks(features_hwc: NDArray[np.floating] | torch.Tensor, config: LabellingConfig) -> Proposals:
    """Masks over the patches of features (h, w, C), by the configured method."""
    if config.method == "multicut":
        cut = run_multicut(features_hwc, config.multicut)
        return Proposals(masks=cut.masks, skipped=cut.skipped, optimality=cut.optimality)
    merged = run_promerge(features_hwc, config.promerge)
    return Proposals(masks=merged.masks, skipped=merged.skipped)


def refine_proposals(
    image_hwc: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    scores: NDArray[np.float32],
    config: LabellingConfig,
    num_threads: int = 1,
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """CRF, large components, holes, and out with masks (N, H, W) that are no longer themselves (METHODS 2.7).

    Returns those that stay, with their scores (N,). `image_hwc` is uint8 RGB of the masks' size.
    """
    refined = refine_masks(image_hwc, masks, config.crf, num_threads=num_threads)
    refined = keep_large_components(refined, config.component_fraction)
    refined = fill_holes(refined)
    kept = paired_ious(masks, refined) >= config.min_refined_iou
    return refined[kept], scores[kept]


def warm_up(config: LabellingConfig) -> None:
    """Do now what the first image of a process would wait for: loading compiled code."""
    propose_masks(np.ones((4, 4, 1), np.float16), config)
    if config.refine == "crf":
        image = np.zeros((8, 8, 3), np.uint8)
        for num_masks in (1, 8, 16):  # the numba backend has code of its own for each
            refine_masks(image, np.zeros((num_masks, 8, 8), bool), config.crf)


def make_instances(
    masks: NDArray[np.bool_], scores: NDArray[np.float32], size: tuple[int, int], method: str
) -> Instances:
    """Instances of masks (N, h, w) brought to `size` = (height, width), best first, without what vanishes.

    Ordered by falling score, then falling area, then first pixel in reading order. One mask at a time is
    held at full size, which for a large photograph is a hundred megabytes.
    """
    found: list[tuple[float, int, int, bytes, NDArray[np.int32]]] = []
    for mask, score in zip(masks, scores, strict=True):
        full = resize_masks(mask[None], size)
        area = int(np.count_nonzero(full))
        if area > 0:
            first_pixel = int(full.argmax())
            found.append((-float(score), -area, first_pixel, encode_rles(full)[0], mask_boxes_xyxy(full)[0]))
    found.sort(key=lambda item: item[:3])
    return Instances(
        size=size,
        method=method,
        rles=tuple(item[3] for item in found),
        boxes_xyxy=np.array([item[4] for item in found], np.int32).reshape(-1, 4),
        areas=np.array([-item[1] for item in found], np.int64),
        scores=np.array([-item[0] for item in found], np.float32),
        stabilities=np.full(len(found), np.nan, np.float32),
    )


def make_outcome(record: ImageRecord, image: PreparedImage, labels: Labels) -> Outcome:
    """The row of an image that was looked at."""
    instances = labels.found if isinstance(labels.found, Instances) else None
    reason = labels.found if isinstance(labels.found, Reason) else None
    empty = Status.REJECTED if reason is Reason.NON_FINITE else Status.NO_OBJECT
    return Outcome(
        record=record,
        status=Status.LABELLED if instances is not None else empty,
        height=image.size[0],
        width=image.size[1],
        sha256=image.sha256,
        reason=reason,
        instances=instances,
        optimality=labels.optimality,
    )
