"""Configuration of pre-training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from engine.bounds import Bounded, Bounds, Count, Positive
from engine.encoders.encoder import EMBEDDED
from engine.errors import ConfigurationError
from engine.images.decoding import DecodingConfig
from engine.pretraining.dino import DinoConfig
from engine.pretraining.regions import RegionConfig
from engine.pretraining.schedules import OptimiserConfig
from engine.pretraining.views import ViewConfig


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig(Bounded):
    """Everything that decides the encoder that pre-training makes."""

    name: Annotated[str, tyro.conf.arg(name="encoder")] = "vit_small_patch8_224"
    """A Vision Transformer of timm; with a tag (vit_small_patch8_224.dino) its published weights exist. Or
    embedded, to go on from the small ViT that comes with maskmill."""
    weights: str = "random"
    """Initial weights: random, hub, a .safetensors, .pth, .pt or .bin file, or its s3://bucket/key. Leave it
    out with embedded."""
    patch_size: Count | None = None
    """Side of a patch in pixels; default: the architecture's. With random weights only."""
    depth: Count | None = None
    """Number of blocks; default: the architecture's. With random weights only."""
    limit: Count | None = None
    """Train on the first N images only."""
    batch_size: Count = 128
    """Images per step, over all workers together."""
    steps: Count = 30_000
    """Steps to train for; with max_minutes, the largest number of steps."""
    max_minutes: Positive | None = None
    """Fit training and its schedules into this time instead. The result then depends on the machine."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Autocast dtype of the forward pass; weights and optimiser stay in float32."""
    cache_side: Count = 320
    """Shorter side in pixels to which images are shrunk before they are cached on the workers' disks."""
    seed: Annotated[int, Bounds(0, 2**63 - 1, "a seed")] = 0
    """Seed of weights, sample order and augmentation."""
    dino: DinoConfig = field(default_factory=DinoConfig)
    regions: RegionConfig = field(default_factory=RegionConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name == EMBEDDED and self.weights != "random":
            raise ConfigurationError(
                f"the encoder {EMBEDDED!r} brings its own weights: leave weights out, or name a timm ViT"
            )
        if (self.patch_size is not None or self.depth is not None) and not self.is_fresh:
            raise ConfigurationError(
                "patch_size and depth shape a new network, but trained weights have their own: leave one of "
                "them out"
            )
        if self.dino.weight == 0 and self.regions.weight == 0:
            raise ConfigurationError("dino.weight and regions.weight are both 0: nothing would be learned")

    @property
    def is_fresh(self) -> bool:
        """Whether training starts from random weights."""
        return self.weights == "random" and self.name != EMBEDDED
