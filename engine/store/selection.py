"""Selection of stored instances by score, stability and count.

A store keeps every candidate with its score; training, export, evaluation and reports select from them when
they read, without labelling again (docs/methods.md, 3). All of them use this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from engine.bounds import Bounded, Bounds, Count
from engine.errors import StoreError
from engine.masks.instances import Instances
from engine.store.columns import ShardColumns
from engine.store.pseudo_labels import Version
from engine.types import Outcome


@dataclass(frozen=True, kw_only=True)
class SelectionConfig(Bounded):
    """Conditions that an instance must meet to be selected, all of them; by default there are none."""

    min_score: Annotated[float, Bounds()] | None = None
    """Lowest score R(M)."""
    top_percent: Annotated[float, Bounds(0, 100, "a percentage", above=True)] | None = None
    """Select this percentage of all instances of the store, those with the highest scores; try 60 first."""
    min_stability: Annotated[float, Bounds()] | None = None
    """Lowest holistic stability Z; instances without one are left out."""
    max_per_image: Count | None = None
    """Most instances per image: those with the highest scores that meet the other conditions."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A selection resolved against one store: `score_cut` is the lowest score within `top_percent`."""

    config: SelectionConfig
    score_cut: float = -math.inf


def plan_selection(version: Version, config: SelectionConfig) -> Selection:
    """Resolve `config` against a version, in one pass over its scores if `top_percent` is given.

    Takes four bytes of memory per instance. Raises StoreError if `min_stability` is given and no instance has
    a stability.
    """
    if config.min_stability is not None:
        check_stability(version, "min_stability")
    if config.top_percent is None:
        return Selection(config=config)
    cut = score_cut(version.instance_columns("score"), config.top_percent)
    return Selection(config=config, score_cut=cut)


def check_stability(version: Version, what: str) -> None:
    """Raise StoreError if no instance has a stability; the error says that `what` needs it."""
    if not any(np.isfinite(column).any() for column in version.instance_columns("stability")):
        raise StoreError(
            f"no instance of {version.name} has a stability, which {what} needs: leave it out, or use a "
            "round that has measured it"
        )


def score_cut(scores: Iterable[NDArray[np.float32]], top_percent: float) -> float:
    """Lowest score within the best `top_percent` of all instances, rounded up to a whole instance.

    `scores` are pieces of any length. At least `top_percent` of the instances have this score or a higher
    one, and more only if several have exactly this score: ties are selected together, so that the order of
    the store does not matter. -inf if there are no scores.

    >>> score_cut([np.float32([0.5, 0.25]), np.float32([1.0, 0.25])], top_percent=50)
    0.5
    >>> score_cut([np.float32([0.5, 0.25]), np.float32([1.0, 0.25])], top_percent=51)
    0.25
    """
    all_scores = np.concatenate([np.zeros(0, np.float32), *scores])
    if len(all_scores) == 0:
        return -math.inf
    # Rounded first: 7 % of 100 is 7.000000000000001 in floating point, which must not become 8 instances.
    num_selected = math.ceil(round(len(all_scores) * top_percent / 100, 6))
    position = len(all_scores) - max(num_selected, 1)
    return float(np.partition(all_scores, position)[position])


def kept_instances(
    selection: Selection,
    offsets: NDArray[np.int64],
    scores: NDArray[np.float32],
    stabilities: NDArray[np.float32],
) -> NDArray[np.bool_]:
    """Mask of the selected ones among M instances of N images, bool (M,).

    `scores` and `stabilities` are (M,); `offsets` is (N + 1,), and image i has the instances offsets[i] to
    offsets[i + 1], best first.

    >>> two = Selection(config=SelectionConfig(min_score=0.2, max_per_image=1))
    >>> scores = np.float32([0.1, 0.3, 0.3, 0.2])
    >>> kept_instances(two, np.array([0, 3, 4]), scores, scores).tolist()
    [False, True, False, True]
    """
    config = selection.config
    kept = scores >= selection.score_cut
    if config.min_score is not None:
        # In the precision of stored scores, so that 0.1 selects what is stored as 0.1.
        kept &= scores >= np.float32(config.min_score)
    if config.min_stability is not None:
        kept &= stabilities >= np.float32(config.min_stability)
    if config.max_per_image is not None:
        num_kept = np.cumsum(kept)
        num_before_image = np.concatenate(([0], num_kept))[offsets[:-1]]
        kept &= num_kept - np.repeat(num_before_image, np.diff(offsets)) <= config.max_per_image
    return kept


def select_columns(columns: ShardColumns, selection: Selection) -> ShardColumns:
    """The shard with its selected instances; images without any remain."""
    return columns.keep_instances(
        kept_instances(selection, columns.offsets, columns.scores, columns.stabilities)
    )


def select_instances(instances: Instances, selection: Selection) -> Instances:
    """The selected instances of one image."""
    offsets = np.array([0, len(instances)], np.int64)
    kept = kept_instances(selection, offsets, instances.scores, instances.stabilities)
    return instances.keep(kept)


def select_outcomes(version: Version, config: SelectionConfig) -> Iterator[Outcome]:
    """Stream all rows of a version, each with its selected instances.

    A labelled image of which no instance is selected stays labelled, with zero instances.
    """
    selection = plan_selection(version, config)
    for outcome in version.outcomes():
        if outcome.instances is None:
            yield outcome
        else:
            yield replace(outcome, instances=select_instances(outcome.instances, selection))
