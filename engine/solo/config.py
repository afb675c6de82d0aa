"""Configuration of the network, of its grids and of detection."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from engine.bounds import Bounded, Bounds, Count, NotNegative, Positive
from engine.errors import ConfigurationError

# Source: Wang et al., arXiv 2003.10152; for objects of 10 to 40 pixels (ships in SAR chips), ours:
# grids twice as fine, ranges a quarter.
_PUBLISHED_GRIDS = (40, 36, 24, 16, 12)
_PUBLISHED_RANGES_PX = ((1.0, 96.0), (48.0, 192.0), (96.0, 384.0), (192.0, 768.0), (384.0, 2048.0))
_SMALL_GRIDS = (80, 72, 48, 32, 24)
_SMALL_RANGES_PX = ((1.0, 24.0), (12.0, 48.0), (24.0, 96.0), (48.0, 192.0), (96.0, 2048.0))

NUM_LEVELS = 5
MASK_STRIDE = 4

_Seed = Annotated[int, Bounds(0, 2**63, "a whole number", below=True)]
_Probability = Annotated[float, Bounds(0, 1, "a probability", below=True)]


@dataclass(frozen=True, kw_only=True)
class GridConfig(Bounded):
    """Assignment of objects to levels and cells, by the object size sqrt(width x height) in pixels."""

    objects: Literal["usual", "small"] = "usual"
    """Published grids and size ranges (usual), or those for objects of 10 to 40 pixels (small)."""
    grids: tuple[Count, ...] | None = None
    """Cells along each side, one number for each of the 5 levels from fine to coarse."""
    ranges_px: tuple[tuple[NotNegative, NotNegative], ...] | None = None
    """Smallest and largest object size of each level, in pixels; ranges may overlap."""
    centre: Annotated[float, Bounds(0, 1, "a share", above=True)] = 0.2
    """Size of an object's centre region, whose cells are positive, relative to its box."""
    max_cells_per_image: Count = 256
    """Maximum number of masks learned per image; each object gets one cell before any gets a second."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, values in (("grids", self.grids), ("ranges_px", self.ranges_px)):
            if values is not None and len(values) != NUM_LEVELS:
                raise ConfigurationError(f"{name} takes {NUM_LEVELS} values, got {len(values)}")
        if any(low >= high for low, high in self.size_ranges_px):
            raise ConfigurationError(f"ranges_px are pairs of rising sizes, got {self.size_ranges_px}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Cells along each side of every level's grid."""
        return self.grids or (_PUBLISHED_GRIDS if self.objects == "usual" else _SMALL_GRIDS)

    @property
    def size_ranges_px(self) -> tuple[tuple[float, float], ...]:
        """Smallest and largest object size of every level."""
        return self.ranges_px or (_PUBLISHED_RANGES_PX if self.objects == "usual" else _SMALL_RANGES_PX)

    @property
    def num_cells(self) -> int:
        """Total number of cells of all levels."""
        return sum(size**2 for size in self.sizes)


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(Bounded):
    """Conversion of network outputs to instances (arXiv 2003.10152, section 3.3)."""

    min_score: _Probability = 0.1
    """Minimum objectness of the cells whose masks are computed."""
    mask_threshold: _Probability = 0.5
    """Probability above which a pixel belongs to a mask."""
    max_before_nms: Count = 500
    """Maximum number of masks that matrix NMS compares, best first."""
    max_instances: Count = 100
    """Maximum number of instances per image."""
    nms_sigma: Positive = 2.0
    """Sigma of matrix NMS, which divides scores by up to exp(sigma IoU²)."""
    min_score_after_nms: _Probability = 0.05
    """Masks whose score after matrix NMS is lower are dropped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_before_nms < self.max_instances:
            raise ConfigurationError(
                f"max_instances is at most max_before_nms, got {self.max_instances} and {self.max_before_nms}"
            )


@dataclass(frozen=True, kw_only=True)
class SoloConfig(Bounded):
    """Class-agnostic SOLOv2 on any timm backbone."""

    backbone: str = "resnet101"
    """timm model: one with feature maps at strides 4 to 32 (resnet, convnext, ...) or a Vision Transformer,
    which gets a simple feature pyramid."""
    backbone_weights: str = "random"
    """random, hub (timm's published weights), a .safetensors, .pth, .pt or .bin file, or its s3://bucket/key."""
    image_size: Count = 1024
    """Side in pixels of the square that images are fitted into; a multiple of 32."""
    pyramid_channels: Count = 256
    """Channels of the feature pyramid."""
    head_channels: Count = 512
    """Channels of the category and kernel towers."""
    mask_channels: Count = 256
    """Channels of the mask features, which is the length of a mask kernel."""
    head_depth: Count = 4
    """Convolutions in each tower."""
    grid: GridConfig = field(default_factory=GridConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    seed: Annotated[_Seed, tyro.conf.arg(name="network-seed")] = 0
    """Seed of the randomly initialised weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.backbone or not self.backbone_weights:
            raise ConfigurationError("backbone and backbone_weights must not be empty")
        if self.image_size % 32:
            raise ConfigurationError(f"image_size is a multiple of 32 pixels, got {self.image_size}")

    @property
    def trains_norms(self) -> bool:
        """Whether norms are trained: GroupNorm from scratch, frozen BatchNorm with loaded weights."""
        return self.backbone_weights == "random"
