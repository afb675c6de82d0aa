"""The network, what it learns from each image, how its answers become instances, and how a run goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from engine.errors import ConfigurationError

# Source: Wang et al., arXiv 2003.10152; for objects of 10 to 40 pixels (ships in SAR chips), ours:
# grids twice as fine, ranges a quarter.
_PUBLISHED_GRIDS = (40, 36, 24, 16, 12)
_PUBLISHED_RANGES_PX = ((1.0, 96.0), (48.0, 192.0), (96.0, 384.0), (192.0, 768.0), (384.0, 2048.0))
_SMALL_GRIDS = (80, 72, 48, 32, 24)
_SMALL_RANGES_PX = ((1.0, 24.0), (12.0, 48.0), (24.0, 96.0), (48.0, 192.0), (96.0, 2048.0))

NUM_LEVELS = 5
MASK_STRIDE = 4


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """Which cells of which grid answer for an object, by its size sqrt(width x height) in pixels."""

    objects: Literal["usual", "small"] = "usual"
    """Published grids and size ranges, or those for objects of 10 to 40 pixels."""
    grids: tuple[int, ...] | None = None
    """Cells along each side, one number for each of the 5 levels from fine to coarse."""
    ranges_px: tuple[tuple[float, float], ...] | None = None
    """Sizes from .. to in pixels that each level learns; they may overlap."""
    centre: float = 0.2
    """Cells within this share of an object's box around its centre of mass answer for it."""
    max_cells_per_image: int = 256
    """Cells whose masks are learned from one image; each object gets one before any gets its second."""

    def __post_init__(self) -> None:
        for name, values in (("grids", self.grids), ("ranges_px", self.ranges_px)):
            if values is not None and len(values) != NUM_LEVELS:
                raise ConfigurationError(f"grid.{name} takes {NUM_LEVELS} values, got {len(values)}")
        if min(self.sizes) < 1:
            raise ConfigurationError(f"grid.grids are at least 1 cell, got {self.sizes}")
        if any(not 0 <= low < high for low, high in self.size_ranges_px):
            raise ConfigurationError(
                f"grid.ranges_px are pairs of rising sizes from 0 on, got {self.size_ranges_px}"
            )
        if not 0 < self.centre <= 1:
            raise ConfigurationError(f"grid.centre is a share above 0 and at most 1, got {self.centre}")
        if self.max_cells_per_image < 1:
            raise ConfigurationError(
                f"grid.max_cells_per_image is at least 1, got {self.max_cells_per_image}"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Cells along a side of each level's grid."""
        return self.grids or (_PUBLISHED_GRIDS if self.objects == "usual" else _SMALL_GRIDS)

    @property
    def size_ranges_px(self) -> tuple[tuple[float, float], ...]:
        """The sizes that each level learns."""
        return self.ranges_px or (_PUBLISHED_RANGES_PX if self.objects == "usual" else _SMALL_RANGES_PX)

    @property
    def num_cells(self) -> int:
        """Cells of all levels together."""
        return sum(size**2 for size in self.sizes)


@dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """How cells become instances (arXiv 2003.10152, section 3.3)."""

    min_score: float = 0.1
    """Cells with a lower objectness are not looked at."""
    mask_threshold: float = 0.5
    """A pixel belongs to a mask above this probability."""
    max_before_nms: int = 500
    """Masks that matrix NMS compares, best first."""
    max_instances: int = 100
    """Masks of an image at most."""
    nms_sigma: float = 2.0
    """Matrix NMS divides scores by up to exp(sigma IoU²)."""
    min_score_after_nms: float = 0.05
    """Masks whose score matrix NMS brings below this are dropped."""

    def __post_init__(self) -> None:
        for name in ("min_score", "mask_threshold", "min_score_after_nms"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigurationError(
                    f"detection.{name} is at least 0 and below 1, got {getattr(self, name)}"
                )
        if self.nms_sigma <= 0:
            raise ConfigurationError(f"detection.nms_sigma must be above 0, got {self.nms_sigma}")
        if self.max_instances < 1 or self.max_before_nms < self.max_instances:
            raise ConfigurationError(
                "detection.max_instances is at least 1 and at most max_before_nms, got "
                f"{self.max_instances} and {self.max_before_nms}"
            )


@dataclass(frozen=True, kw_only=True)
class SoloConfig:
    """The network: SOLOv2 without classes, on any backbone of timm."""

    backbone: str = "resnet101"
    """A network of timm: one with feature maps at strides 4 to 32 (resnet, convnext, ...) or a Vision
    Transformer, which gets a simple feature pyramid."""
    backbone_weights: str = "random"
    """random, hub (what timm publishes), a .safetensors, .pth, .pt or .bin file, or its s3://bucket/key."""
    image_size: int = 1024
    """Side in pixels of the square that images are fitted into; a multiple of 32."""
    pyramid_channels: int = 256
    """Channels of the feature pyramid."""
    head_channels: int = 512
    """Channels of the category and kernel towers."""
    mask_channels: int = 256
    """Channels of the mask features, and so numbers in a kernel."""
    head_depth: int = 4
    """Convolutions in each tower."""
    grid: GridConfig = field(default_factory=GridConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    seed: Annotated[int, tyro.conf.arg(name="network-seed")] = 0
    """Of the weights that are not loaded."""

    def __post_init__(self) -> None:
        if not self.backbone or not self.backbone_weights:
            raise ConfigurationError("solo.backbone and solo.backbone_weights must not be empty")
        if self.image_size < 32 or self.image_size % 32:
            raise ConfigurationError(f"solo.image_size is a multiple of 32 pixels, got {self.image_size}")
        for name in ("pyramid_channels", "head_channels", "mask_channels", "head_depth"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"solo.{name} is at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise ConfigurationError(f"solo.seed must be in [0, 2^63), got {self.seed}")

    @property
    def trains_norms(self) -> bool:
        """GroupNorm throughout when trained from scratch; loaded weights keep their BatchNorm, frozen."""
        return self.backbone_weights == "random"
