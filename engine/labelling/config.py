"""Everything that decides which labels an image gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

import tyro

from engine.encoders import EncoderConfig
from engine.errors import ConfigurationError
from engine.images.decoding import DecodingConfig
from engine.images.tiling import TilingConfig
from engine.proposals.config import MaskFilterConfig, MultiCutConfig, ProMergeConfig
from engine.refine import CrfConfig
from engine.solo.config import DetectionConfig

PatchMethod = Literal["promerge", "multicut"]
"""The methods that group the patches of an encoder."""


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
