"""Configurations of the methods that propose masks over patches, and of the mask score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from engine.bounds import Bounded, Bounds, Cosine, Count, NotNegative, Share
from engine.errors import ConfigurationError
from engine.proposals.offsets import Offset, ring_offsets

_Sides = Annotated[int, Bounds(1, 4, "a number of sides")]


@dataclass(frozen=True, kw_only=True)
class ProMergeConfig(Bounded):
    """Constants of ProMerge; the defaults are those of the paper's released program."""

    stride: Count = 4
    """Patches between neighbouring seeds, in both directions (6 is the paper's speed/quality trade-off)."""
    tau_b: Cosine = 0.2
    """A seed's mask holds the patches whose cosine with the seed exceeds this."""
    border_coverage: Share = 0.5
    """A mask covers an image side if it holds more than this share of the side's patches."""
    border_sides: _Sides = 2
    """A mask that covers at least this many of the four sides is a background candidate."""
    component_fraction: Share = 0.5
    """Components with at least this share of the area of the seed's component become separate masks."""
    vote_fraction: Share = 0.5
    """The background is the patches in more than this share of the background candidates."""
    min_background: Share = 0.1
    """Images whose background covers less than this share get no masks."""
    filter: Literal["cascade", "ioa", "feature"] = "cascade"
    """Tests of masks against the background: both (cascade), overlap alone (ioa) or features alone."""
    max_background_ioa: Share = 0.8
    """Masks with at least this share of their new patches in the background are dropped."""
    max_background_similarity: Cosine = 0.1
    """Masks whose mean feature has at least this dot product with the background's mean are dropped."""
    merge_ioa: Share = 0.5
    """A mask joins a cluster that contains more than this share of it."""
    merge_min_ioa: Share = 0.1
    """A mask joins a cluster that contains more than this share of it if their features are similar."""
    merge_similarity: Cosine = 0.1
    """Dot product of mean features from which they are similar."""


@dataclass(frozen=True, kw_only=True)
class MultiCutConfig(Bounded):
    """Constants of MultiCut proposals."""

    distances: tuple[Count, ...] = (1, 3, 9)
    """Edges connect each patch to the eight patches at each of these distances."""
    biases: tuple[Annotated[float, Bounds()], ...] = (0.2, 0.4, 0.9)
    """Cosine above which patches attract each other, one per distance; higher gives more and smaller parts.
    The best values depend on the encoder and the images: jobs/choose_bias.py finds them without labels."""
    starts: Count = 3
    """Local searches whose results are fused into a better partition; 1 is the fast setting."""
    seed: int = 0
    """Seed of the noise by which the local searches differ."""
    bound_rounds: Count = 1
    """Rounds of the lower bound behind the optimality gap: 8 halve the gap at ten times the cost."""
    border_coverage: Share = 0.5
    """A part covers an image side if it holds more than this share of the side's patches."""
    border_sides: _Sides = 2
    """A part that covers at least this many of the four sides is background."""
    min_patches: Count = 2
    """Parts with fewer patches are dropped; give 1 if objects are as small as a patch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.distances or len(set(self.distances)) < len(self.distances):
            raise ConfigurationError(f"distances are one or more distinct numbers, got {self.distances}")
        if len(self.biases) != len(self.distances):
            raise ConfigurationError(
                f"biases are one number for each of {len(self.distances)} distances, got {self.biases}"
            )

    @property
    def offsets(self) -> tuple[Offset, ...]:
        """The offsets of all edges, ordered by distance."""
        return tuple(offset for distance in self.distances for offset in ring_offsets(distance))

    @property
    def offset_biases(self) -> NDArray[np.float64]:
        """The bias of each offset."""
        return np.repeat(np.array(self.biases, np.float64), len(ring_offsets(1)))


@dataclass(frozen=True, kw_only=True)
class TreeConfig(Bounded):
    """Constants of region tree proposals; the weights of cues are explained in tree_scores.Cues."""

    segment_side_px: Count = 480
    """Superpixels are found in the image shrunk to this longer side; masks are as exact as its pixels."""
    num_leaves: Count = 400
    """Superpixels that merging starts from; more find smaller objects and take longer."""
    border_weight: NotNegative = 4.0
    """Weight of the common border's strength against the features' difference, in choosing what merges."""
    size_power: NotNegative = 0.4
    """How much sooner small regions merge; 0 ignores size."""
    border_coverage: Share = 0.5
    """A region covers an image side if it holds more than this share of the side's pixels."""
    border_sides: _Sides = 2
    """A region that covers at least this many of the four sides is background."""
    min_area: Share = 0.0004
    """Smallest region, as a share of the image."""
    max_area: Share = 0.9
    """Largest region, as a share of the image."""
    isolation_weight: NotNegative = 1.5
    """Power in the score of how little a region resembles the background. All cues are multiplied."""
    contrast_weight: NotNegative = 0.5
    """Power of R(M), by which a region stands out from its surroundings."""
    coherence_weight: NotNegative = 1.0
    """Power of how alike the features inside a region are."""
    lifetime_weight: NotNegative = 0.5
    """Power of the span of dissimilarity over which a region exists."""
    area_weight: NotNegative = 0.75
    """Power of a region's area."""
    compactness_weight: NotNegative = 2.0
    """Power of a short outline around a large area."""
    freedom_weight: NotNegative = 1.0
    """Power of touching few of the image's sides."""
    outline_weight: NotNegative = 0.5
    """Power of the strength of the border around a region."""
    detail_weight: NotNegative = 0.5
    """Power of the strength of the borders inside a region."""
    duplicate_iou: Share = 0.7
    """Of two regions with a larger IoU, the one with the higher score stays."""
    overlap_penalty: NotNegative = 1.0
    """A region's score is multiplied by exp(-penalty x IoU) for every better one; 0 has no effect."""
    relative_power: NotNegative = 0.5
    """Scores are divided by this power of the image's typical score: 0 compares regions of all images as they
    are, 1 only says how far a region stands out in its image."""
    max_masks: Count = 100
    """Most masks of an image."""

    @property
    def cue_weights(self) -> dict[str, float]:
        """The power of each cue in the score, by the cue's name."""
        return {
            "isolation": self.isolation_weight,
            "contrast": self.contrast_weight,
            "coherence": self.coherence_weight,
            "lifetime": self.lifetime_weight,
            "area": self.area_weight,
            "compactness": self.compactness_weight,
            "freedom": self.freedom_weight,
            "outline": self.outline_weight,
            "detail": self.detail_weight,
        }


@dataclass(frozen=True, kw_only=True)
class MaskFilterConfig:
    """Configuration of the mask score R(M)."""

    edge: Literal["outside", "inside"] = "outside"
    """Edge patches: the ring of patches just outside the mask, or the mask's own rim."""
