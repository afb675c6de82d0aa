"""Ways in which labelling is known to fail, recognised by what the store holds (METHODS 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.report.rounds import Round, comparable_evaluations, figure_of
from engine.report.statistics import Statistics

# Below 1 % of the image a mask is small, below 0.1 its affinity inside hardly exceeds that outside.
_SMALL_SHARE, _LOW_SCORE = 0.01, 0.1
_MANY_SMALL, _MANY_LOW = 0.5, 0.3
_MANY_SPILLED = 0.25
_FEW_LABELLED, _FEW_MASKS, _LOW_AP = 0.2, 0.2, 0.005
_LOW_STABILITY = 0.1


@dataclass(frozen=True, kw_only=True)
class Signature:
    """One way to fail: how it is told, whether it shows, what was found, and what to try."""

    name: str
    rule: str
    shows: bool
    found: str
    advice: str


def find_signatures(statistics: Statistics, rounds: Sequence[Round], current: Round) -> list[Signature]:
    """All known failures, whether they show or not. `current` is the round that `statistics` are of."""
    return [_over_segmentation(statistics), _bleeding(statistics), _collapse(statistics, rounds, current)]


def _over_segmentation(statistics: Statistics) -> Signature:
    small = statistics.area_shares.share_below(_SMALL_SHARE)
    low = statistics.scores.share_below(_LOW_SCORE)
    return Signature(
        name="Over-segmentation",
        rule=f"more than {_MANY_SMALL:.0%} of the masks cover less than {_SMALL_SHARE:.0%} of their image, "
        f"and more than {_MANY_LOW:.0%} have a score below {_LOW_SCORE}",
        shows=small > _MANY_SMALL and low > _MANY_LOW,
        found=f"{small:.0%} of the masks are smaller than {_SMALL_SHARE:.0%} of their image, {low:.0%} score "
        f"below {_LOW_SCORE}",
        advice="Cut at reading (--top-percent 60, --min-score 0.1). If objects are still in pieces, lower "
        "the method's threshold for joining patches, or use an encoder trained on images like these.",
    )


def _bleeding(statistics: Statistics) -> Signature:
    share = statistics.spilled_masks / max(statistics.masks, 1)
    return Signature(
        name="Bleeding boundaries",
        rule=f"more than {_MANY_SPILLED:.0%} of the masks cover a quarter of their image or more and touch "
        "three of its sides",
        shows=share > _MANY_SPILLED,
        found=f"{share:.0%} of the masks cover a quarter of their image and touch three of its sides",
        advice="Refine with the CRF (--refine crf), raise the threshold at which patches are alike, and in "
        "training give the superpixel-guided loss less weight.",
    )


def _collapse(statistics: Statistics, rounds: Sequence[Round], current: Round) -> Signature:
    signs = []
    if statistics.labelled_share < _FEW_LABELLED:
        signs.append(f"{statistics.labelled_share:.0%} of the images are labelled")
    if statistics.mean_masks < _FEW_MASKS:
        signs.append(f"there are {statistics.mean_masks:.2f} masks an image")
    precision = figure_of(current, comparable_evaluations(list(rounds)), "masks", "AP")
    if precision is not None and precision < _LOW_AP:
        signs.append(f"mask AP is {precision:.3f}")
    if statistics.stabilities.total and statistics.stabilities.median() < _LOW_STABILITY:
        signs.append(f"half of the masks have a stability of {statistics.stabilities.median():.2f} or less")
    return Signature(
        name="Collapse",
        rule=f"fewer than {_FEW_LABELLED:.0%} of the images are labelled, or there are fewer than "
        f"{_FEW_MASKS} masks an image, or mask AP is below {_LOW_AP}, or the median stability is below "
        f"{_LOW_STABILITY}",
        shows=bool(signs) and statistics.images > 0,
        found="; ".join(signs) or "none of this",
        advice="Look at the reasons below. Where background is missing, the encoder's features do not suit "
        "these images; in a self-training round, start again from the round before and check that the "
        "weights by stability are not near zero (--min-stability too high, checkpoints too far apart).",
    )
