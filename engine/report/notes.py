"""Notes on the quality of labels: known failures, recognised by statistics of a version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.encoders.encoder import DESCRIPTOR, EMBEDDED
from engine.report.statistics import VersionStatistics
from engine.types import Reason

# Masks below 1 % of the image are small; with a score below 0.1 they hardly differ from their surroundings.
_SMALL_SHARE, _LOW_SCORE = 0.01, 0.1
_MANY_SMALL, _MANY_LOW = 0.5, 0.3
_MANY_OVERFLOWING = 0.25
_FEW_LABELLED, _FEW_MASKS, _LOW_AP = 0.2, 0.2, 0.005
_LOW_STABILITY = 0.1
_MOST_IMAGES = 0.5
# 1 % of the objects of COCO, and none of PennFudan, touch three sides of the image or cover half of it.
_MUCH_BACKGROUND = 0.1
# The median is 0.97 for annotated objects of COCO, 0.90 for those of PennFudan, and about 0.5 for the regions
# of a colour segmentation (Felzenszwalb and Huttenlocher, 2004).
_LOW_COLOUR_RATIO, _MIN_COLOUR_MASKS = 0.7, 20
_LOW_RANK_CORRELATION = 0.2
_BACKGROUND_REASONS = (Reason.NO_FOREGROUND, Reason.NO_BACKGROUND, Reason.SMALL_BACKGROUND)
# Methods whose scores are on the scale of `_LOW_SCORE`; versions without a recorded method are among them.
_SCORED_METHODS = (None, "promerge", "multicut", "solo")
_THRESHOLD_FLAGS = {
    "promerge": "set --promerge.tau-b",
    "multicut": "set --multicut.biases (jobs/choose_bias.py finds them without ground truth)",
    "solo": "lower --detection.min-score",
}


class Verdict(StrEnum):
    """The result of looking for a failure."""

    FOUND = "found"
    NOT_FOUND = "not found"
    NOT_TESTED = "not tested"


@dataclass(frozen=True, kw_only=True)
class Note:
    """A known failure of labels: its rule, verdict, evidence and advice.

    `evidence` is the measurement, or the reason why the failure was not tested.
    """

    name: str
    rule: str
    verdict: Verdict
    evidence: str
    advice: str

    @property
    def line(self) -> str:
        """The note as one line of plain text, with the advice if the failure was found."""
        advice = f". To try: {self.advice}" if self.verdict is Verdict.FOUND else ""
        return f"{self.verdict}: {self.name} ({self.evidence}){advice}"


def find_notes(statistics: VersionStatistics, colour_ratios: NDArray[np.float64] | None = None) -> list[Note]:
    """Test a version for all known failures.

    `colour_ratios`, float64 (M,), are `engine.report.colours.colour_ratios` of masks in a random sample of
    images, which need the photographs; None if these were not read.
    """
    return [
        _collapse(statistics),
        _empty_images(statistics),
        _over_segmentation(statistics),
        _bleeding(statistics),
        _background(statistics),
        _single_masks(statistics),
        _colours(colour_ratios),
        _ranking(statistics),
        _small_encoder(statistics),
    ]


def note_lines(notes: Sequence[Note]) -> list[str]:
    """Lines of plain text: one per failure found, one of all not found, one of all not tested."""
    found = [note.line for note in notes if note.verdict is Verdict.FOUND]
    clear = [note.name for note in notes if note.verdict is Verdict.NOT_FOUND]
    untested = [f"{note.name} ({note.evidence})" for note in notes if note.verdict is Verdict.NOT_TESTED]
    return [
        *found,
        *([f"{Verdict.NOT_FOUND}: {', '.join(clear)}"] if clear else []),
        *([f"{Verdict.NOT_TESTED}: {', '.join(untested)}"] if untested else []),
    ]


def _verdict(is_found: bool, why_not_tested: str = "") -> Verdict:
    if why_not_tested:
        return Verdict.NOT_TESTED
    return Verdict.FOUND if is_found else Verdict.NOT_FOUND


def _collapse(statistics: VersionStatistics) -> Note:
    untested = "" if statistics.images else "the version has no images yet"
    signs, missing = [], []
    if statistics.labelled_share < _FEW_LABELLED:
        signs.append(f"{statistics.labelled_share:.0%} of the images are labelled")
    if statistics.mean_masks < _FEW_MASKS:
        signs.append(f"{statistics.mean_masks:.2f} masks per image")
    precision = _largest_evaluation(statistics.evaluations).get("masks", {}).get("AP")
    if precision is None:
        missing.append("mask AP")
    elif precision < _LOW_AP:
        signs.append(f"mask AP {precision:.3f}")
    if not statistics.stabilities.total:
        missing.append("stability")
    elif statistics.stabilities.median() < _LOW_STABILITY:
        signs.append(f"median stability {statistics.stabilities.median():.2f}")
    counts = f"{statistics.labelled_share:.0%} of the images are labelled"
    unmeasured = f"; {' and '.join(missing)} not measured" if missing else ""
    return Note(
        name="Collapse",
        rule=f"fewer than {_FEW_LABELLED:.0%} of the images are labelled, or there are fewer than "
        f"{_FEW_MASKS} masks per image, or mask AP is below {_LOW_AP}, or the median stability is below "
        f"{_LOW_STABILITY}",
        verdict=_verdict(bool(signs), untested),
        evidence=untested or "; ".join(signs) or counts + unmeasured,
        advice="Look at the reasons of the images without labels. In a self-training round, start again from "
        "the round before and check the stabilities (--min-stability too high, checkpoints too far apart).",
    )


def _empty_images(statistics: VersionStatistics) -> Note:
    total, empty = statistics.processed_images, sum(statistics.reasons[r] for r in _BACKGROUND_REASONS)
    untested = "" if total else "no image was processed"
    method = statistics.configuration.get("method")
    remedy = _THRESHOLD_FLAGS.get(str(method), "choose the thresholds of the method for these features")
    return Note(
        name="Thresholds that do not fit the features",
        rule=f"no foreground or no background was found in more than {_MOST_IMAGES:.0%} of the images",
        verdict=_verdict(empty > _MOST_IMAGES * total, untested),
        evidence=untested or f"no foreground or no background was found in {empty:,} of {total:,} images",
        advice=f"The thresholds suit other features than those of these images: {remedy}, or use another "
        "method or encoder.",
    )


def _over_segmentation(statistics: VersionStatistics) -> Note:
    method = statistics.configuration.get("method")
    untested = _no_masks(statistics)
    if method not in _SCORED_METHODS:
        untested = f"scores of method {method} are on another scale"
    small = statistics.area_shares.share_below(_SMALL_SHARE)
    low = statistics.scores.share_below(_LOW_SCORE)
    return Note(
        name="Over-segmentation",
        rule=f"more than {_MANY_SMALL:.0%} of the masks cover less than {_SMALL_SHARE:.0%} of their image, "
        f"and more than {_MANY_LOW:.0%} have a score below {_LOW_SCORE}",
        verdict=_verdict(small > _MANY_SMALL and low > _MANY_LOW, untested),
        evidence=untested
        or f"{small:.0%} of the masks cover less than {_SMALL_SHARE:.0%} of their image, {low:.0%} score "
        f"below {_LOW_SCORE}",
        advice="Select masks when reading (--top-percent 60, --min-score 0.1). If objects are still in "
        "pieces, lower the method's threshold for merging patches, or use an encoder trained on similar "
        "images.",
    )


def _bleeding(statistics: VersionStatistics) -> Note:
    untested = _no_masks(statistics)
    share = statistics.overflowing_masks / max(statistics.masks, 1)
    return Note(
        name="Bleeding boundaries",
        rule=f"more than {_MANY_OVERFLOWING:.0%} of the masks cover at least a quarter of their image and "
        "touch three of its sides",
        verdict=_verdict(share > _MANY_OVERFLOWING, untested),
        evidence=untested
        or f"{share:.0%} of the masks cover at least a quarter of their image and touch three of its sides",
        advice="Refine with the CRF (--refine crf), raise the method's threshold for merging patches, and "
        "give the superpixel-guided loss less weight in training.",
    )


def _background(statistics: VersionStatistics) -> Note:
    untested = _no_masks(statistics)
    share = statistics.background_masks / max(statistics.masks, 1)
    return Note(
        name="Background labelled as objects",
        rule=f"more than {_MUCH_BACKGROUND:.0%} of the masks cover at least half of their image or touch "
        "three of its sides, as sky, walls and floors do",
        verdict=_verdict(share > _MUCH_BACKGROUND, untested),
        evidence=untested
        or f"{share:.0%} of the masks cover at least half of their image or touch three of its sides",
        advice="Such masks teach a detector to find background: use another method or a larger encoder.",
    )


def _single_masks(statistics: VersionStatistics) -> Note:
    total, single = statistics.labelled_images, statistics.single_mask_images
    untested = "" if total else "no image is labelled"
    return Note(
        name="One mask per image",
        rule=f"more than {_MOST_IMAGES:.0%} of the labelled images have exactly one mask",
        verdict=_verdict(single > _MOST_IMAGES * total, untested),
        evidence=untested or f"{single:,} of {total:,} labelled images have exactly one mask",
        advice="Unless the images show one object each, most objects are missing: use another method or a "
        "larger encoder.",
    )


def _colours(ratios: NDArray[np.float64] | None) -> Note:
    untested, median, num_masks = "", float("nan"), 0 if ratios is None else len(ratios)
    if ratios is None:
        untested = "the photographs were not read; jobs/report.py reads them with --corpus"
    elif num_masks < _MIN_COLOUR_MASKS:
        untested = f"the photographs read have {num_masks} masks, {_MIN_COLOUR_MASKS} are needed"
    else:
        median = float(np.median(ratios))
    return Note(
        name="Masks that follow colours",
        rule="colours vary much less within masks than within the same shapes at mirrored positions: the "
        f"median ratio of the variances is below {_LOW_COLOUR_RATIO} (about 0.9 for objects, 0.5 for colour "
        "segments)",
        verdict=_verdict(median < _LOW_COLOUR_RATIO, untested),
        evidence=untested or f"the median ratio is {median:.2f} for {num_masks} masks",
        advice="The features describe colour and texture rather than objects: use a larger encoder "
        "(--encoder dinov2).",
    )


def _ranking(statistics: VersionStatistics) -> Note:
    by_score = {
        digest: evaluation
        for digest, evaluation in statistics.evaluations.items()
        if evaluation.get("protocol", {}).get("score", "score") == "score" and "score_to_iou" in evaluation
    }
    evaluation = _largest_evaluation(by_score)
    correlation = evaluation.get("score_to_iou", {}).get("masks", {}).get("rank_correlation")
    if not by_score:
        untested = "no evaluation against ground truth is stored; jobs/evaluate.py makes one"
    else:
        untested = "" if correlation is not None else "all scores or all IoUs are equal"
    return Note(
        name="Scores that do not rank",
        rule=f"the rank correlation of score and best IoU is below {_LOW_RANK_CORRELATION}",
        verdict=_verdict(correlation is not None and correlation < _LOW_RANK_CORRELATION, untested),
        evidence=untested
        or f"the rank correlation is {correlation:.2f} on {_num_images(evaluation):,} annotated images",
        advice="Selecting by score (--min-score, --top-percent) removes right masks as readily as wrong "
        "ones: keep all masks, or use another method or encoder.",
    )


def _small_encoder(statistics: VersionStatistics) -> Note:
    encoder = statistics.configuration.get("encoder", {})
    name, weights = encoder.get("name"), encoder.get("weights")
    untested = "" if name is not None else "the version does not record its encoder"
    if statistics.configuration.get("method") == "solo":
        untested = "a trained network made the labels"
    evidence = f"the encoder is {name}" + (" with random weights" if weights == "random" else "")
    return Note(
        name="A small encoder",
        rule=f"the encoder is {EMBEDDED} or {DESCRIPTOR}, which are for first trials, or its weights are "
        "random",
        verdict=_verdict(name in (EMBEDDED, DESCRIPTOR) or weights == "random", untested),
        evidence=untested or evidence,
        advice="Take a larger encoder for training sets: --encoder dinov2.",
    )


def _no_masks(statistics: VersionStatistics) -> str:
    """Why statistics of masks are not tested; empty if there are masks."""
    return "" if statistics.masks else "there are no masks"


def _largest_evaluation(evaluations: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The evaluation of most images, of equals the first by digest; empty if there is none."""
    return max((evaluations[digest] for digest in sorted(evaluations)), key=_num_images, default={})


def _num_images(evaluation: Mapping[str, Any]) -> int:
    return int(evaluation.get("protocol", {}).get("ground_truth", {}).get("images", 0))
