"""Holistic stability against a direct evaluation of its equation, and the change between rounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import StoreError
from engine.masks.instances import Instances
from engine.masks.packing import make_instances
from engine.selftraining.change import label_change
from engine.solo.stability import (
    StabilityRange,
    holistic_stability,
    stability_range,
    stability_weights,
    with_stability,
)
from engine.types import ImageRecord, Outcome, Reason, Status


def found(*masks):
    """Instances of a row of pixels, written as strings: "xx.." is the mask of its first two."""
    stack = np.array([[[letter == "x" for letter in mask]] for mask in masks], bool)
    scores = np.linspace(1, 0.5, len(masks), dtype=np.float32)
    return make_instances(stack, scores, (1, len(masks[0])), "solo")


NOTHING = Instances(size=(1, 4), method="solo")


def outcome(name, instances):
    record = ImageRecord(image_id=name, path=name)
    if instances is None or len(instances) == 0:
        return Outcome(record=record, status=Status.NO_OBJECT, reason=Reason.NO_FOREGROUND, height=1, width=4)
    return Outcome(record=record, status=Status.LABELLED, height=1, width=4, instances=instances)


def test_stability_worked_by_hand():
    last = found("xx..", "..xx")
    earlier = [found("xxx.", "x..."), NOTHING, found("..xx", "xx..")]
    # 2/3 + 0 + 1 for the first; IoUs of 1/4, 0 and 1 for the second.
    np.testing.assert_allclose(holistic_stability(last, earlier), [2 / 3 + 1, 1 / 4 + 1])
    assert holistic_stability(last, []).tolist() == [0, 0]
    assert holistic_stability(NOTHING, earlier).shape == (0,)
    kept = with_stability(last, earlier)
    assert kept.rles == last.rles
    assert kept.stabilities.dtype == np.float32


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_stability_is_the_sum_of_the_best_ious(seed):
    rng = np.random.default_rng(seed)
    stacks = [rng.random((rng.integers(0, 4), 5, 7)) < 0.5 for _ in range(4)]
    stacks = [stack[stack.any(axis=(1, 2))] for stack in stacks]
    made = [make_instances(s, np.float32(rng.random(len(s))), (5, 7), "solo") for s in stacks]
    order = np.argsort(-made[-1].scores)  # already best first
    assert order.tolist() == list(range(len(order)))
    decoded = [decode(instances) for instances in made]
    expected = []
    for mask in decoded[-1]:
        best = [
            max(((mask & m).sum() / (mask | m).sum() for m in stack), default=0) for stack in decoded[:-1]
        ]
        expected.append(sum(best))
    np.testing.assert_allclose(holistic_stability(made[-1], made[:-1]), expected, rtol=1e-6)


def decode(instances):
    from engine.masks.rle import decode_rles

    return decode_rles(instances.rles, instances.size)


def test_weights_are_relative_to_the_whole_store():
    pieces = [np.float32([0.5, 2.5]), np.float32([]), np.float32([np.nan, 1.5])]
    whole = stability_range(pieces)
    assert whole == StabilityRange(least=0.5, greatest=2.5)
    np.testing.assert_allclose(stability_weights(pieces[2][1:], whole, 0.1), [1.1 / 2.1], rtol=1e-6)
    equal = StabilityRange(least=2.0, greatest=2.0)
    assert stability_weights(np.float32([2.0, 2.0]), equal, 0.1).tolist() == [1, 1]
    assert stability_range([np.float32([np.nan]), np.float32([])]) is None


def test_change_worked_by_hand():
    before = [outcome("a", found("xx..", "..xx")), outcome("b", found("x..."))]
    after = [outcome("a", found("xxx.")), outcome("b", None)]
    # Best IoUs: 2/3 and 1/4 of the old instances in a, 0 of the one in b, 2/3 of the new one.
    assert label_change(before, after) == pytest.approx(1 - (2 / 3 + 1 / 4 + 2 / 3) / 4)
    assert label_change(after, before) == label_change(before, after)
    assert label_change(before, before) == pytest.approx(0)
    assert label_change([outcome("a", None)], [outcome("a", None)]) == 0
    assert label_change([outcome("a", found("x..."))], [outcome("a", found("...x"))]) == 1


@pytest.mark.parametrize("other", [["a"], ["a", "c"], ["a", "b", "c"]])
def test_rounds_of_different_images_are_refused(other):
    before = [outcome("a", None), outcome("b", None)]
    with pytest.raises(StoreError, match="not of the same images"):
        label_change(before, [outcome(name, None) for name in other])
