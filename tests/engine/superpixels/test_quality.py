import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import loadmat

from engine.superpixels import METHODS, SuperpixelConfig, segment
from engine.superpixels.alternatives import CountSearch
from engine.superpixels.quality import (
    achievable_segmentation_accuracy,
    boundary_recall,
    clear_sides,
    contour_density,
    crossing_counts,
    undersegmentation_error,
)

TRUTH = np.array([[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]])


def test_the_ground_truth_itself_scores_perfectly():
    assert boundary_recall(TRUTH, TRUTH) == 1
    assert undersegmentation_error(TRUTH, TRUTH) == 0
    assert achievable_segmentation_accuracy(TRUTH, TRUTH) == 1
    assert contour_density(TRUTH) == 2 / 12


def test_a_single_superpixel_over_two_segments():
    whole = np.zeros_like(TRUTH)
    assert boundary_recall(whole, TRUTH) == 0
    assert boundary_recall(TRUTH, whole) == 1
    # min(6, 6) for each of the two segments, of 12 pixels
    assert undersegmentation_error(whole, TRUTH) == 1
    assert achievable_segmentation_accuracy(whole, TRUTH) == 0.5


def test_a_leak_counts_on_both_sides_of_the_boundary():
    leaking = np.array([[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]])
    # superpixel 0 has 6 pixels in segment 0 and 1 in segment 1: min(6, 1) + min(1, 6)
    assert undersegmentation_error(leaking, TRUTH) == pytest.approx(2 / 12)
    assert achievable_segmentation_accuracy(leaking, TRUTH) == pytest.approx(11 / 12)


@pytest.mark.parametrize(("shift", "tolerance_px", "recall"), [(2, 2, 1), (3, 2, 0), (3, 3, 1), (-2, 2, 1)])
def test_recall_accepts_contours_within_the_tolerance(shift, tolerance_px, recall):
    truth = (np.arange(20) >= 10)[None].repeat(3, axis=0).astype(int)
    assert boundary_recall(np.roll(truth, shift, axis=1)[:, 5:], truth[:, 5:], tolerance_px) == recall


def test_recall_measures_euclidean_distance():
    truth = np.zeros((9, 9), int)
    truth[:4, :4] = 1
    labels = np.zeros((9, 9), int)
    labels[:2, :2] = 1
    # truth's corner contour pixel (3, 3) lies 2 sqrt(2) from (1, 1); (3, 0) and (0, 3) lie 2 away.
    assert boundary_recall(labels, truth, 2.0) == pytest.approx(4 / 7)
    assert boundary_recall(labels, truth, 2.9) == 1


def test_truth_labels_may_be_any_integers():
    assert achievable_segmentation_accuracy(TRUTH, TRUTH * 1000 - 7) == 1
    assert undersegmentation_error(TRUTH, TRUTH * 1000 - 7) == 0


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_measures_equal_their_definitions(seed):
    rng = np.random.default_rng(seed)
    labels, truth = rng.integers(0, 5, (4, 7)), rng.integers(0, 3, (4, 7))
    overlaps = {(s, g): ((labels == s) & (truth == g)).sum() for s in range(5) for g in range(3)}
    areas = {s: (labels == s).sum() for s in range(5)}
    leaked = sum(min(shared, areas[s] - shared) for (s, _), shared in overlaps.items())
    right = sum(max(overlaps[s, g] for g in range(3)) for s in range(5))
    assert undersegmentation_error(labels, truth) == pytest.approx(leaked / 28)
    assert achievable_segmentation_accuracy(labels, truth) == pytest.approx(right / 28)


def test_a_crossing_needs_more_than_the_tolerance_on_both_sides():
    labels = np.zeros((3, 10), int)
    labels[1], labels[2] = 1, 2
    mask = np.zeros((3, 10), bool)
    mask[0, :1], mask[1, :5] = True, True
    assert crossing_counts(labels, mask, ~mask, 0.1) == (1, 2)
    assert crossing_counts(labels, mask, ~mask, 0.05) == (2, 2)
    assert crossing_counts(labels, ~mask, mask, 0.1) == (1, 3)


def test_no_superpixel_touches_an_empty_object():
    empty = np.zeros(TRUTH.shape, bool)
    assert crossing_counts(TRUTH, *clear_sides(empty, 2.0)) == (0, 0)
    assert crossing_counts(TRUTH, *clear_sides(~empty, 2.0)) == (0, 2)


def test_a_boundary_one_pixel_off_is_tolerated():
    labels = (np.arange(12) >= 7)[None].repeat(4, axis=0).astype(int)
    mask = (np.arange(12) < 6)[None].repeat(4, axis=0)
    assert crossing_counts(labels, *clear_sides(mask, 0.0)) == (1, 1)
    assert crossing_counts(labels, *clear_sides(mask, 2.0)) == (0, 1)


def test_the_hierarchy_beats_slic_and_felzenszwalb_on_human_segmentations(development_data):
    bsds500 = development_data("data/bsds500")
    paths = sorted((bsds500 / "images/val").glob("*.jpg"))[::50]
    means = {
        method: np.mean([measure(bsds500, path, method) for path in paths], axis=0) for method in METHODS
    }
    recall, leak, accuracy, density = means.pop("hierarchy")
    for other in means.values():
        assert recall > other[0]
        assert leak < other[1]
        assert accuracy > other[2]
    assert density < means["slic"][3]


def measure(bsds500, path, method):
    """Recall, undersegmentation error, accuracy and density for the first annotator of one image."""
    truth = loadmat(bsds500 / f"groundTruth/val/{path.stem}.mat")["groundTruth"][0, 0]["Segmentation"][0, 0]
    image = np.asarray(Image.open(path).convert("RGB"))
    labels = segment(image, SuperpixelConfig(method=method, num_segments=200, search=CountSearch(max_runs=3)))
    truth = truth.astype(np.int32)
    return (
        boundary_recall(labels, truth),
        undersegmentation_error(labels, truth),
        achievable_segmentation_accuracy(labels, truth),
        contour_density(labels),
    )
