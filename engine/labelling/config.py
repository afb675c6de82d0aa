"""Everything that decides which labels an image gets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, get_args

import tyro

from engine.bounds import Bounded, Count, Share
from engine.encoders import EncoderConfig
from engine.encoders.encoder import DEFAULT_WEIGHTS
from engine.errors import ConfigurationError
from engine.images.crops import PreparationConfig
from engine.images.decoding import DecodingConfig
from engine.images.tiling import TilingConfig
from engine.proposals.config import MaskFilterConfig, MultiCutConfig, ProMergeConfig, TreeConfig
from engine.refine import CrfConfig
from engine.solo.config import DetectionConfig
from engine.types import Precision

PatchMethod = Literal["tree", "promerge", "multicut"]
"""The methods that find masks among the patches of an encoder."""

# Methods whose masks follow the borders of patches, not of objects, unless a CRF refines them.
_COARSE_METHODS = ("promerge", "multicut")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Bounded):
    """The trained network of method solo."""

    weights: str | None = None
    """The network that labels: network.safetensors of jobs/train_solo.py, or one of its
    network-STEP.safetensors; a file or s3://bucket/key."""
    earlier_weights: tuple[str, ...] = ()
    """Earlier networks of the same training (network-STEP.safetensors). How far they agree on an instance is
    its stability. Each costs as much time as the network itself."""
    batch_size: Count = 8
    """Images in one forward pass; smaller batches are padded."""
    precision: Precision = "float32"
    """Autocast dtype of the forward pass."""


@dataclass(frozen=True, kw_only=True)
class LabellingConfig(Bounded):
    """Everything that decides which labels an image gets."""

    method: Literal[PatchMethod, "solo"] = "tree"
    """How instances are found: as regions of a tree over superpixels (tree), by what stands out from a common
    background (promerge), as parts of a partition of the patches (multicut), or by a trained network (solo),
    which --network.weights names."""
    refine: Literal["auto", "crf", "none"] = "auto"
    """How masks are fitted to the edges in the image: by a dense CRF, or not at all. auto is crf for promerge
    and multicut, whose masks consist of patches, and none for tree and solo."""
    min_refined_iou: Share = 0.5
    """Drop a mask if its IoU with what the CRF makes of it is below this."""
    component_fraction: Share = 0.5
    """After the CRF, keep the components of at least this share of a mask's largest one."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    tree: TreeConfig = field(default_factory=TreeConfig)
    promerge: ProMergeConfig = field(default_factory=ProMergeConfig)
    multicut: MultiCutConfig = field(default_factory=MultiCutConfig)
    mask_filter: MaskFilterConfig = field(default_factory=MaskFilterConfig)
    crf: CrfConfig = field(default_factory=CrfConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    tiling: Annotated[TilingConfig, tyro.conf.arg(name="")] = field(default_factory=TilingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.uses_network and not self.network.weights and self.encoder.weights != DEFAULT_WEIGHTS:
            # The short flag --weights names the weights of whatever looks at the images.
            network = replace(self.network, weights=self.encoder.weights)
            object.__setattr__(self, "network", network)
            object.__setattr__(self, "encoder", replace(self.encoder, weights=DEFAULT_WEIGHTS))
        if self.uses_network and not self.network.weights:
            raise ConfigurationError(
                f"method {self.method} needs a trained network: give --weights FILE or s3://bucket/key, the "
                "network.safetensors that jobs/train_solo.py writes"
            )
        if not self.uses_network and self.network != NetworkConfig():
            raise ConfigurationError(
                f"method {self.method} uses no trained network: leave network out, or give --method solo"
            )

    @property
    def uses_network(self) -> bool:
        """Whether a trained network finds the instances, and no encoder is used."""
        return self.method not in get_args(PatchMethod)

    @property
    def uses_crf(self) -> bool:
        """Whether masks are refined."""
        return self.refine == "crf" or (self.refine == "auto" and self.method in _COARSE_METHODS)

    @property
    def batch_size(self) -> int:
        """Crops in one forward pass."""
        return self.network.batch_size if self.uses_network else self.encoder.batch_size

    def preparation(self, image_size: tuple[int, int]) -> PreparationConfig:
        """How images become crops for an encoder or network that takes `image_size` = (height, width)."""
        return PreparationConfig(
            image_size=image_size,
            keeps_aspect=self.uses_network,
            decoding=self.decoding,
            tiling=self.tiling,
        )

    def check_has_features(self) -> None:
        """Raise ConfigurationError for a method that uses no encoder features."""
        if self.uses_network:
            methods = " or ".join(get_args(PatchMethod))
            raise ConfigurationError(
                f"this job takes --method {methods}: to measure {self.method}, label with it and evaluate "
                "the store"
            )
