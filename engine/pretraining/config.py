"""Everything that decides what pre-training gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from engine.encoders.encoder import EMBEDDED
from engine.errors import ConfigurationError
from engine.images.decoding import DecodingConfig
from engine.pretraining.dino import DinoConfig
from engine.pretraining.regions import RegionConfig
from engine.pretraining.schedules import OptimiserConfig
from engine.pretraining.views import ViewConfig


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """Which network learns from which views by which losses, and for how long."""

    name: Annotated[str, tyro.conf.arg(name="encoder")] = "vit_small_patch8_224"
    """A Vision Transformer of timm; with a tag (vit_small_patch8_224.dino) its published weights exist. Or
    embedded, to go on from the small ViT that comes with maskmill."""
    weights: str = "random"
    """Where training starts: random, hub, a .safetensors, .pth, .pt or .bin file, or its s3://bucket/key.
    Leave it out with embedded."""
    patch_size: int | None = None
    """Side of a patch in pixels, where it is to differ from the architecture's; with random weights only."""
    depth: int | None = None
    """Number of blocks, where it is to differ from the architecture's; with random weights only."""
    batch_size: int = 128
    """Images in one step, over all workers together."""
    steps: int = 30_000
    """Steps to train for; with max_minutes, the most of them."""
    max_minutes: float | None = None
    """Fit training and its schedules into this time instead. What comes out then depends on the machine."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network's passes; weights and optimiser stay in float32."""
    cache_side: int = 320
    """Images are shrunk once to this shorter side in pixels, and kept so on the workers' disks."""
    seed: int = 0
    """Of weights, order and augmentation."""
    dino: DinoConfig = field(default_factory=DinoConfig)
    regions: RegionConfig = field(default_factory=RegionConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    def __post_init__(self) -> None:
        if self.name == EMBEDDED and self.weights != "random":
            raise ConfigurationError(
                f"the encoder {EMBEDDED!r} brings its own weights: leave weights out, or name a timm ViT"
            )
        if (self.patch_size is not None or self.depth is not None) and not self.is_fresh:
            raise ConfigurationError(
                "patch_size and depth shape a new network, and weights bring their own: leave one of them out"
            )
        for name in ("batch_size", "steps", "cache_side", "patch_size", "depth"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {value}")
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise ConfigurationError(f"max_minutes must be above 0, got {self.max_minutes}")
        if not 0 <= self.seed < 2**63:
            raise ConfigurationError(f"seed must be in [0, 2^63), got {self.seed}")
        if self.dino.weight == 0 and self.regions.weight == 0:
            raise ConfigurationError("dino.weight and regions.weight are both 0: nothing would be learned")

    @property
    def is_fresh(self) -> bool:
        """Whether training starts from random weights."""
        return self.weights == "random" and self.name != EMBEDDED
