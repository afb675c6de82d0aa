"""Known failures of labels, and their verdicts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from engine.report.colours import colour_ratios
from engine.report.notes import Note, Verdict, find_notes, note_lines
from engine.report.statistics import VersionStatistics

THRESHOLDS = "Thresholds that do not fit the features"


def statistics_of(
    areas: tuple[float, ...] = (0.1, 0.1),
    scores: tuple[float, ...] = (0.5, 0.5),
    stabilities: tuple[float, ...] = (),
    **counts: Any,
) -> VersionStatistics:
    """Ten labelled images with two masks each, whose areas, scores and stabilities repeat these values."""
    defaults = {"images": 10, "masks": 20, "statuses": Counter({"labelled": 10})}
    statistics = VersionStatistics(**{**defaults, **counts})
    statistics.area_shares.add(np.array(areas))
    statistics.scores.add(np.array(scores))
    statistics.stabilities.add(np.array(stabilities))
    return statistics


def note(name: str, statistics: VersionStatistics, ratios: np.ndarray | None = None) -> Note:
    (found,) = (note for note in find_notes(statistics, ratios) if note.name == name)
    return found


def evaluation(correlation: float | None, images: int = 5, **protocol: Any) -> dict[str, Any]:
    return {
        "masks": {"AP": 0.1},
        "protocol": {"ground_truth": {"images": images}, **protocol},
        "score_to_iou": {"masks": {"rank_correlation": correlation}},
    }


FOUND = [
    ("Collapse", statistics_of(images=60)),
    ("Collapse", statistics_of(masks=1)),
    ("Collapse", statistics_of(evaluations={"d": {"masks": {"AP": 0.001}}})),
    ("Collapse", statistics_of(stabilities=(0.01, 2.0, 0.02))),
    (THRESHOLDS, statistics_of(reasons=Counter(no_foreground=4, no_background=2))),
    ("Over-segmentation", statistics_of(areas=(0.001, 0.005), scores=(0.05, -0.1))),
    ("Bleeding boundaries", statistics_of(overflowing_masks=6)),
    ("Background labelled as objects", statistics_of(background_masks=3)),
    ("One mask per image", statistics_of(single_mask_images=6)),
    ("Scores that do not rank", statistics_of(evaluations={"d": evaluation(0.06)})),
    ("A small encoder", statistics_of(configuration={"encoder": {"name": "embedded"}})),
    ("A small encoder", statistics_of(configuration={"encoder": {"name": "vit", "weights": "random"}})),
]  # fmt: skip

NOT_FOUND = [
    ("Collapse", statistics_of(images=50, masks=10)),
    (THRESHOLDS, statistics_of(reasons=Counter(no_foreground=5, refined_away=5))),
    ("Over-segmentation", statistics_of(areas=(0.001, 0.005))),
    ("Over-segmentation", statistics_of(scores=(0.05, -0.1))),
    ("Bleeding boundaries", statistics_of(overflowing_masks=5)),
    ("Background labelled as objects", statistics_of(background_masks=2)),
    ("One mask per image", statistics_of(single_mask_images=5)),
    ("Scores that do not rank", statistics_of(evaluations={"d": evaluation(0.2)})),
    ("A small encoder", statistics_of(configuration={"encoder": {"name": "vit_base", "weights": "hub"}})),
]  # fmt: skip

NOT_TESTED = [
    ("Collapse", VersionStatistics(), "no images yet"),
    (THRESHOLDS, VersionStatistics(), "no image was processed"),
    ("Over-segmentation", VersionStatistics(), "there are no masks"),
    ("Over-segmentation", statistics_of(configuration={"method": "other"}), "other are on another scale"),
    ("Bleeding boundaries", VersionStatistics(), "there are no masks"),
    ("Background labelled as objects", VersionStatistics(), "there are no masks"),
    ("One mask per image", VersionStatistics(), "no image is labelled"),
    ("Masks that follow colours", statistics_of(), "the photographs were not read"),
    ("Scores that do not rank", statistics_of(), "no evaluation"),
    ("Scores that do not rank", statistics_of(evaluations={"d": evaluation(None)}), "all IoUs are equal"),
    ("Scores that do not rank", statistics_of(evaluations={"d": evaluation(0.9, score="none")}), "no eval"),
    ("A small encoder", statistics_of(), "does not record its encoder"),
    ("A small encoder", statistics_of(configuration={"method": "solo", "encoder": {"name": "a"}}), "trained"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "statistics"), FOUND)
def test_failures_are_found(name: str, statistics: VersionStatistics) -> None:
    assert note(name, statistics).verdict is Verdict.FOUND


@pytest.mark.parametrize(("name", "statistics"), NOT_FOUND)
def test_failures_are_not_found_at_their_limits(name: str, statistics: VersionStatistics) -> None:
    assert note(name, statistics).verdict is Verdict.NOT_FOUND


@pytest.mark.parametrize(("name", "statistics", "why"), NOT_TESTED)
def test_failures_without_data_are_not_tested(name: str, statistics: VersionStatistics, why: str) -> None:
    found = note(name, statistics)
    assert found.verdict is Verdict.NOT_TESTED
    assert why in found.evidence


def test_the_colours_of_too_few_masks_are_not_tested() -> None:
    name = "Masks that follow colours"
    assert note(name, statistics_of(), np.full(19, 0.1)).verdict is Verdict.NOT_TESTED
    assert note(name, statistics_of(), np.full(20, 0.1)).verdict is Verdict.FOUND
    assert note(name, statistics_of(), np.full(20, 1.0)).verdict is Verdict.NOT_FOUND


def test_the_evaluation_on_most_images_counts() -> None:
    evaluations = {"a": evaluation(0.9, images=3), "b": evaluation(0.1, images=90), "c": evaluation(0.9)}
    found = note("Scores that do not rank", statistics_of(evaluations=evaluations))
    assert found.evidence == "the rank correlation is 0.10 on 90 annotated images"


def test_a_collapse_without_an_evaluation_names_the_missing_metrics() -> None:
    found = note("Collapse", statistics_of())
    assert found.evidence == "100% of the images are labelled; mask AP and stability not measured"


def test_lines_of_plain_text() -> None:
    first, *_, clear, untested = note_lines(find_notes(statistics_of(single_mask_images=9)))
    assert first.startswith(
        "found: One mask per image (9 of 10 labelled images have exactly one mask). To try:"
    )
    assert clear.startswith("not found: Collapse, Thresholds that do not fit the features, Over-segmentation")
    assert untested.startswith("not tested: Masks that follow colours (the photographs were not read")
    assert note_lines([]) == []


def test_colour_ratios_of_regions_and_of_random_masks() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)
    image[:12, :15] = 99
    masks = np.zeros((3, 30, 40), bool)
    masks[0, :12, :15] = True  # the region of one colour
    masks[1, 20:, 25:] = True  # noise, as its mirror images
    masks[2, 0, 0] = True  # too small
    ratios = colour_ratios(image, masks)
    assert ratios[0] == 0
    assert ratios[1] == pytest.approx(1, abs=0.2)
    assert len(ratios) == 2
    assert len(colour_ratios(image, np.zeros((0, 30, 40), bool))) == 0
    assert colour_ratios(np.zeros((30, 40, 3), np.uint8), masks).tolist() == [0, 0]
