"""Settings of the methods that find masks among patches, and of their scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.errors import ConfigurationError
from engine.proposals.offsets import Offset, ring_offsets


@dataclass(frozen=True, kw_only=True)
class ProMergeConfig:
    """Constants of ProMerge; the defaults are those of the paper's released program."""

    stride: int = 4
    """Patches between neighbouring seeds, in both directions (6 is the paper's speed/quality trade-off)."""
    tau_b: float = 0.2
    """A patch belongs to a seed's mask where their cosine exceeds this."""
    border_coverage: float = 0.5
    """A mask covers an image side if it holds more than this share of the side's patches."""
    border_sides: int = 2
    """A mask that covers at least this many of the four sides is a background candidate."""
    component_fraction: float = 0.5
    """Components of at least this share of the seed's component become masks of their own."""
    vote_fraction: float = 0.5
    """Background = the patches in more than this share of the background candidates."""
    min_background: float = 0.1
    """Share of the image below which a background is not trusted and the image has no masks."""
    filter: Literal["cascade", "ioa", "feature"] = "cascade"
    """Which tests a mask must pass against the background: both, overlap alone, or features alone."""
    max_background_ioa: float = 0.8
    """A mask whose new patches lie in the background by this share or more is dropped."""
    max_background_similarity: float = 0.1
    """A mask whose mean feature is at least this similar to the background's is dropped."""
    merge_ioa: float = 0.5
    """A mask joins a cluster that holds more than this share of it."""
    merge_min_ioa: float = 0.1
    """Share of a mask above which similar features are enough for joining."""
    merge_similarity: float = 0.1
    """What counts as similar then: the dot product of the mean features."""

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ConfigurationError(f"promerge.stride is a number of patches >= 1, got {self.stride}")
        if not 1 <= self.border_sides <= 4:
            raise ConfigurationError(f"promerge.border_sides is 1 to 4 sides, got {self.border_sides}")
        shares = (
            "border_coverage", "component_fraction", "vote_fraction", "min_background", "max_background_ioa",
            "merge_ioa", "merge_min_ioa",
        )  # fmt: skip
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"promerge.{name} is a share, 0 to 1, got {getattr(self, name)}")
        for name in ("tau_b", "max_background_similarity", "merge_similarity"):
            if not -1 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"promerge.{name} is a cosine, -1 to 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class MultiCutConfig:
    """Constants of MultiCut proposals."""

    distances: tuple[int, ...] = (1, 3, 9)
    """Edges join each patch to the eight patches at each of these distances."""
    biases: tuple[float, ...] = (0.2, 0.4, 0.9)
    """For each distance, the cosine above which patches belong together; higher gives more and smaller parts.
    It depends on the encoder and on the images: jobs/choose_bias.py finds it without ground truth."""
    starts: int = 3
    """Searches for the best partition, whose results are merged into a better one; 1 is the fast setting."""
    seed: int = 0
    """Of the noise that makes the searches differ."""
    bound_rounds: int = 1
    """Effort of the lower bound behind the gap: 8 gives less than half the gap, in ten times the time."""
    border_coverage: float = 0.5
    """A part covers an image side if it holds more than this share of the side's patches."""
    border_sides: int = 2
    """A part that covers at least this many of the four sides is background."""
    min_patches: int = 2
    """Parts of fewer patches are no proposals. Where objects are as small as a patch, give 1."""

    def __post_init__(self) -> None:
        if not self.distances or min(self.distances) < 1 or len(set(self.distances)) < len(self.distances):
            raise ConfigurationError(
                f"multicut.distances are different numbers of patches >= 1, got {self.distances}"
            )
        if len(self.biases) != len(self.distances):
            raise ConfigurationError(
                f"multicut.biases are one for each of {len(self.distances)} distances, got {self.biases}"
            )
        if not all(map(math.isfinite, self.biases)):
            raise ConfigurationError(f"multicut.biases are finite numbers, got {self.biases}")
        for name in ("starts", "bound_rounds", "min_patches"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"multicut.{name} is at least 1, got {getattr(self, name)}")
        if not 0 <= self.border_coverage <= 1:
            raise ConfigurationError(
                f"multicut.border_coverage is a share, 0 to 1, got {self.border_coverage}"
            )
        if not 1 <= self.border_sides <= 4:
            raise ConfigurationError(f"multicut.border_sides is 1 to 4 sides, got {self.border_sides}")

    @property
    def offsets(self) -> tuple[Offset, ...]:
        """The offsets of all edges, distance by distance."""
        return tuple(offset for distance in self.distances for offset in ring_offsets(distance))

    @property
    def offset_biases(self) -> NDArray[np.float64]:
        """The bias of each of the offsets."""
        return np.repeat(np.array(self.biases, np.float64), len(ring_offsets(1)))


@dataclass(frozen=True, kw_only=True)
class TreeConfig:
    """Constants of region tree proposals; the weights of cues are explained in tree_scores.Cues."""

    segment_side_px: int = 480
    """Superpixels are found in the image shrunk to this longer side; masks are as exact as its pixels."""
    num_leaves: int = 400
    """Superpixels that merging starts from; more find smaller objects and take longer."""
    border_weight: float = 4.0
    """Weight of the common border's strength against the features' difference, in choosing what merges."""
    size_power: float = 0.4
    """How much sooner small regions merge; 0 ignores size."""
    border_coverage: float = 0.5
    """A region covers an image side if it holds more than this share of the side's pixels."""
    border_sides: int = 2
    """A region that covers at least this many of the four sides is background."""
    min_area: float = 0.0004
    """Smallest region, as a share of the image."""
    max_area: float = 0.9
    """Largest region, as a share of the image."""
    isolation_weight: float = 1.5
    """Power in the score of how little a region resembles the background. All cues are multiplied."""
    contrast_weight: float = 0.5
    """Power of R(M), by which a region stands out from its surroundings."""
    coherence_weight: float = 1.0
    """Power of how alike the features inside a region are."""
    lifetime_weight: float = 0.5
    """Power of the span of dissimilarity over which a region exists."""
    area_weight: float = 0.75
    """Power of a region's area."""
    compactness_weight: float = 2.0
    """Power of a short outline around a large area."""
    freedom_weight: float = 1.0
    """Power of touching few of the image's sides."""
    outline_weight: float = 0.5
    """Power of the strength of the border around a region."""
    detail_weight: float = 0.5
    """Power of the strength of the borders inside a region."""
    duplicate_iou: float = 0.7
    """Of two regions with a larger IoU, the one with the higher score stays."""
    overlap_penalty: float = 1.0
    """A region's score is multiplied by exp(-penalty x IoU) for every better one; 0 has no effect."""
    relative_power: float = 0.5
    """Scores are divided by this power of the image's typical score: 0 compares regions of all images as they
    are, 1 only says how far a region stands out in its image."""
    max_masks: int = 100
    """Most masks of an image."""

    def __post_init__(self) -> None:
        for name in ("segment_side_px", "num_leaves", "max_masks"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"tree.{name} is at least 1, got {getattr(self, name)}")
        if not 1 <= self.border_sides <= 4:
            raise ConfigurationError(f"tree.border_sides is 1 to 4 sides, got {self.border_sides}")
        for name in ("border_coverage", "min_area", "max_area", "duplicate_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"tree.{name} is a share, 0 to 1, got {getattr(self, name)}")
        weights = (
            "border_weight", "size_power", "isolation_weight", "contrast_weight", "coherence_weight",
            "lifetime_weight", "area_weight", "compactness_weight", "freedom_weight", "outline_weight",
            "detail_weight", "overlap_penalty", "relative_power",
        )  # fmt: skip
        for name in weights:
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ConfigurationError(f"tree.{name} is a number >= 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class MaskFilterConfig:
    """How masks are scored."""

    edge: Literal["outside", "inside"] = "outside"
    """Edge patches: the ring of patches just outside the mask, or the mask's own rim."""
