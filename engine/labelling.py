"""Label images: features, proposals, scores, refinement. The whole method on one page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Annotated, Literal, get_args

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from engine.boxes import mask_boxes_xyxy
from engine.decoding import DecodingConfig
from engine.encoders import Encoder, EncoderConfig
from engine.errors import ConfigurationError
from engine.masks import encode_rle_within, fill_holes, keep_large_components, paired_ious, resize_masks
from engine.preparation import PreparationConfig, cut_crops
from engine.proposals.duplicates import merge_results
from engine.proposals.mask_filter import MaskFilterConfig, score_masks
from engine.proposals.multicut import MultiCutConfig, run_multicut
from engine.proposals.promerge import ProMergeConfig, find_background, run_promerge
from engine.refine import CrfConfig, refine_images, refine_masks
from engine.solo.config import DetectionConfig
from engine.stopwatch import stage
from engine.tiling import Box, TilingConfig, cut_mask, touch_inner_edges
from engine.types import ImageRecord, Instances, Optimality, Outcome, Reason, Status

PatchMethod = Literal["promerge", "multicut"]
"""The methods that group the patches of an encoder."""

# Pixels of masks that are refined together: the torch backend takes 20 bytes for each, the host one.
_MOST_MASK_PIXELS = 2**26


@dataclass(frozen=True, kw_only=True)
class LabellingConfig:
    """Everything that decides which labels an image gets."""

    method: Literal[PatchMethod, "solo"] = "promerge"
    """How instances are found: what stands out from a common background (promerge), the parts of a partition
    (multicut), or what a trained network sees (solo), which --weights names: network.safetensors of
    jobs/train_solo.py, or one of its network-STEP.safetensors."""
    refine: Literal["auto", "crf", "none"] = "auto"
    """How masks are brought to the image's edges: a dense CRF, or not at all. auto: crf for masks of patches,
    none for solo."""
    min_refined_iou: float = 0.5
    """A mask that the CRF changes to an IoU below this is dropped."""
    component_fraction: float = 0.5
    """After the CRF, components of at least this share of a mask's largest stay."""
    earlier_weights: tuple[str, ...] = ()
    """With method solo: earlier networks of the same training (network-STEP.safetensors), to measure each
    instance's stability by how far they agree on it. Each costs as much time as --weights."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    promerge: ProMergeConfig = field(default_factory=ProMergeConfig)
    multicut: MultiCutConfig = field(default_factory=MultiCutConfig)
    mask_filter: MaskFilterConfig = field(default_factory=MaskFilterConfig)
    crf: CrfConfig = field(default_factory=CrfConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    tiling: Annotated[TilingConfig, tyro.conf.arg(name="")] = field(default_factory=TilingConfig)

    def __post_init__(self) -> None:
        for name in ("min_refined_iou", "component_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"{name} is a share, 0 to 1, got {getattr(self, name)}")
        if self.method == "solo":
            self._check_network()
        elif self.earlier_weights:
            raise ConfigurationError("earlier_weights are those of trained networks: give --method solo")

    @property
    def uses_crf(self) -> bool:
        """Whether masks are refined."""
        return self.refine == "crf" or (self.refine == "auto" and self.method != "solo")

    def check_has_features(self) -> None:
        """Raise ConfigurationError for a method that does without an encoder's features."""
        if self.method == "solo":
            methods = " or ".join(get_args(PatchMethod))
            raise ConfigurationError(
                f"this job takes --method {methods}: to measure solo, label with it and evaluate the store"
            )

    def _check_network(self) -> None:
        if self.encoder.weights in ("hub", "random"):
            raise ConfigurationError(
                "method solo needs a trained network: give --weights FILE or s3://bucket/key, the "
                "network.safetensors that jobs/train_solo.py writes"
            )
        if self.encoder.name != EncoderConfig.name:
            raise ConfigurationError(
                f"method solo sees images by the network of --weights, not by the encoder "
                f"{self.encoder.name!r}: leave --encoder out"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """Where in its image a crop lies, and what the image's patches (h, w) show to be background."""

    box_xyxy: Box
    background: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """What became of an image's features: instances, or the reason why there are none."""

    found: Instances | Reason
    optimality: Optimality | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """Masks that were found in a crop and may become its instances: bool (N, h, w) over its patches, or, once
    refined, (N, H, W) at the encoder's size.

    `scores` (N,) are theirs; `resized_hwc`, `size` and `tile` are as in `label_features`; `device` is where
    the features are, and where masks are refined.
    """

    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    resized_hwc: NDArray[np.uint8]
    size: tuple[int, int]
    tile: Tile | None
    device: str
    optimality: Optimality | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Proposals:
    """Masks over patches, bool (N, h, w), before scores and refinement; `skipped` says why N is 0."""

    masks: NDArray[np.bool_]
    skipped: Reason | None
    optimality: Optimality | None = None


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
    if config.tiling.tile is None or not bool(torch.isfinite(torch.as_tensor(features_hwc)).all()):
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


def find_candidates(
    features_hwc: NDArray[np.floating] | torch.Tensor,
    resized_hwc: NDArray[np.uint8],
    size: tuple[int, int],
    config: LabellingConfig,
    tile: Tile | None = None,
) -> Candidates | Labels:
    """The first part of `label_features`, up to refinement; labels where there is nothing to refine."""
    features = torch.as_tensor(features_hwc)
    if not bool(torch.isfinite(features).all()):
        return Labels(found=Reason.NON_FINITE)
    with stage("propose"):
        proposed = propose_masks(features, size, config, tile)
    if proposed.skipped is not None:
        return Labels(found=proposed.skipped, optimality=proposed.optimality)
    masks = proposed.masks
    if tile is not None:
        masks = masks[np.count_nonzero(masks, axis=(1, 2)) >= config.tiling.tile_min_patches]
    with stage("score"):
        scores = score_masks(features, masks, config.mask_filter)
    masks, scores = drop_cut_masks(masks, scores, size, tile)
    return Candidates(
        masks=masks,
        scores=scores,
        resized_hwc=resized_hwc,
        size=size,
        tile=tile,
        device=str(features.device),
        optimality=proposed.optimality,
    )


def group_candidates(found: Sequence[Candidates]) -> Iterator[list[Candidates]]:
    """Candidates of crops of one size, in order, by groups whose refinement fits into a gigabyte or two,
    where one crop's does."""
    group: list[Candidates] = []
    for candidates in found:
        # Every image of a group takes the room of the one with most masks.
        most = max(len(other.masks) for other in (*group, candidates))
        num_pixels = math.prod(candidates.resized_hwc.shape[:2])
        if group and (len(group) + 1) * most * num_pixels > _MOST_MASK_PIXELS:
            yield group
            group = []
        group.append(candidates)
    if group:
        yield group


def refine_candidates(found: Sequence[Candidates], config: LabellingConfig) -> list[Candidates]:
    """Bring the masks of several crops, all of one size and on one device, to the encoder's size, and to the
    images' edges where `config` asks for it; a mask that is no longer what it was goes."""
    coarse = [
        resize_masks(item.masks, (item.resized_hwc.shape[0], item.resized_hwc.shape[1])) for item in found
    ]
    if not config.uses_crf or not found:
        return [replace(item, masks=masks) for item, masks in zip(found, coarse, strict=True)]
    results = []
    with stage("refine"):
        images = [item.resized_hwc for item in found]
        refined = refine_images(images, coarse, config.crf, device=found[0].device)
        for item, before, after in zip(found, coarse, refined, strict=True):
            masks, scores = settle_masks(before, after, item.scores, config)
            masks, scores = drop_cut_masks(masks, scores, item.size, item.tile)
            results.append(replace(item, masks=masks, scores=scores))
    return results


def make_labels(candidates: Candidates, config: LabellingConfig) -> Labels:
    """The last part of `label_features`: instances of candidates that need no more refinement."""
    box_xyxy = candidates.tile.box_xyxy if candidates.tile else None
    with stage("resize masks, run lengths"):
        instances = make_instances(
            candidates.masks, candidates.scores, candidates.size, config.method, box_xyxy
        )
    found = instances if len(instances) > 0 else Reason.REFINED_AWAY
    return Labels(found=found, optimality=candidates.optimality)


def propose_masks(
    features_hwc: NDArray[np.floating] | torch.Tensor,
    size: tuple[int, int],
    config: LabellingConfig,
    tile: Tile | None = None,
) -> Proposals:
    """Masks over the patches of features (h, w, C) of an image of `size`, or of its tile, by the method."""
    seen_background = None
    if tile is not None:
        grid = (features_hwc.shape[0], features_hwc.shape[1])
        seen_background = cut_mask(tile.background, tile.box_xyxy, size, grid)
    if config.method == "multicut":
        cut = run_multicut(features_hwc, config.multicut, seen_background=seen_background)
        return Proposals(masks=cut.masks, skipped=cut.skipped, optimality=cut.optimality)
    merged = run_promerge(features_hwc, config.promerge, seen_background)
    return Proposals(masks=merged.masks, skipped=merged.skipped)


def drop_cut_masks(
    masks: NDArray[np.bool_], scores: NDArray[np.float32], size: tuple[int, int], tile: Tile | None
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """The masks (N, h, w) of a tile that its inner edges do not cut, with their scores (N,)."""
    if tile is None:
        return masks, scores
    kept = ~touch_inner_edges(masks, tile.box_xyxy, size)
    return masks[kept], scores[kept]


def settle_masks(
    coarse: NDArray[np.bool_],
    refined: NDArray[np.bool_],
    scores: NDArray[np.float32],
    config: LabellingConfig,
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """What is left of masks (N, H, W) behind the CRF: their large components, holes filled, without those
    that are no longer what they were (METHODS 2.7); with the scores (N,) of those that stay."""
    settled = fill_holes(keep_large_components(refined, config.component_fraction))
    kept = paired_ious(coarse, settled) >= config.min_refined_iou
    return settled[kept], scores[kept]


def warm_up(config: LabellingConfig, device: str = "cpu") -> None:
    """Do now what the first image of a process would wait for: loading compiled code."""
    if config.method != "solo":
        propose_masks(np.ones((4, 4, 1), np.float16), (4, 4), config)
    if config.uses_crf:
        image = np.zeros((8, 8, 3), np.uint8)
        for num_masks in (1, 8, 16):  # the numba backend has code of its own for each
            refine_masks(image, np.zeros((num_masks, 8, 8), bool), config.crf, device=device)


def make_instances(
    masks: Iterable[NDArray[np.bool_]],
    scores: NDArray[np.float32],
    size: tuple[int, int],
    method: str,
    box_xyxy: Box | None = None,
) -> Instances:
    """Instances of N masks (h, w) of an image of `size` = (height, width), without what vanishes.

    The masks are brought to the image's size, or to that of `box_xyxy` and to its place in the image.
    Ordered by falling score, then falling area, then first pixel in reading order. One mask at a time is
    held at full size, which for a large photograph is a hundred megabytes.
    """
    x0, y0, x1, y1 = box_xyxy or (0, 0, size[1], size[0])
    found: list[tuple[float, int, int, bytes, NDArray[np.int32]]] = []
    for mask, score in zip(masks, scores, strict=True):
        part = resize_masks(mask[None], (y1 - y0, x1 - x0))
        area = int(np.count_nonzero(part))
        if area > 0:
            row, column = divmod(int(part.argmax()), x1 - x0)
            first_pixel = (y0 + row) * size[1] + x0 + column
            left, top, right, bottom = mask_boxes_xyxy(part)[0].tolist()
            rle = encode_rle_within(part[0, top:bottom, left:right], x0 + left, y0 + top, size)
            box = np.array([x0 + left, y0 + top, x0 + right, y0 + bottom], np.int32)
            found.append((-float(score), -area, first_pixel, rle, box))
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


def make_outcome(record: ImageRecord, size: tuple[int, int], sha256: str, labels: Labels) -> Outcome:
    """The row of an image of `size` = (height, width) that was looked at; `sha256` is its file's."""
    instances = labels.found if isinstance(labels.found, Instances) else None
    reason = labels.found if isinstance(labels.found, Reason) else None
    empty = Status.REJECTED if reason is Reason.NON_FINITE else Status.NO_OBJECT
    return Outcome(
        record=record,
        status=Status.LABELLED if instances is not None else empty,
        height=size[0],
        width=size[1],
        sha256=sha256,
        reason=reason,
        instances=instances,
        optimality=labels.optimality,
    )
