"""The policy of self-training, without any training."""

import pytest

from engine.errors import StoreError
from engine.selftraining.phases import Phase, next_phase
from engine.selftraining.round_metrics import RoundMetrics
from engine.selftraining.rounds import SelfTrainingConfig


def metrics_of(number, change=None, learned=3):
    return RoundMetrics(
        round=number,
        version=f"round-{number:03d}-a",
        labelled=5,
        masks=5,
        learned=learned,
        mean_stability=None,
        change=change,
        mask_ap=None,
        box_ap=None,
    )


def phases_of(config, changes):
    """All phases of a run whose rounds change by `changes`, None for round 0."""
    phases, measured, num_labelled, num_trained = [], [], 1, 0
    while not phases or phases[-1].is_work:
        phases.append(next_phase(config, measured, num_labelled, num_trained))
        if phases[-1] == Phase.MEASURE:
            measured.append(metrics_of(len(measured), changes[len(measured)]))
        num_trained += phases[-1] == Phase.TRAIN
        num_labelled += phases[-1] == Phase.PREDICT
    return " ".join(phases)


def test_rounds_go_on_to_the_last_one():
    config = SelfTrainingConfig(rounds=2)
    expected = "measure train predict measure train predict measure finished"
    assert phases_of(config, [None, 0.5, 0.5]) == expected
    # The last round is finished whether or not it has settled.
    assert phases_of(config, [None, 0.5, 0.0]) == expected


def test_labels_that_settle_end_it():
    config = SelfTrainingConfig(rounds=3, min_change=0.1)
    assert phases_of(config, [None, 0.09]) == "measure train predict measure settled"


def test_nothing_to_learn_from_is_an_error():
    config = SelfTrainingConfig(rounds=2)
    with pytest.raises(StoreError, match=r"none of the 5 masks of round-000-a .* lower selection\.min_score"):
        next_phase(config, [metrics_of(0, learned=0)], 1, 0)
    with pytest.raises(StoreError, match=r"lower later\.selection\.min_score"):
        next_phase(config, [metrics_of(0), metrics_of(1, 0.5, learned=0)], 2, 1)
    # The last round is not learned.
    assert next_phase(config, [metrics_of(0), metrics_of(1, 0.5), metrics_of(2, 0.5, 0)], 3, 2) == "finished"
