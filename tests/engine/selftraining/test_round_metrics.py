"""What is said of a round of labels, on two rounds that are known."""

from dataclasses import replace

import numpy as np
import pytest

from engine.evaluation.ground_truth import AnnotatedImage
from engine.masks.boxes import xyxy_to_xywh
from engine.objects.local import LocalObjects
from engine.selftraining.round_metrics import measure_round
from engine.selftraining.rounds import LaterRoundsConfig, SelfTrainingConfig
from engine.solo.training_config import TrainingConfig
from engine.store.planning import copy_plans
from engine.store.pseudo_labels import PseudoLabelStore
from engine.store.selection import SelectionConfig


@pytest.fixture
def rounds(labelled_discs):
    """Round 0 of five discs, and round 1, which is the same but for its stabilities and for one disc less."""
    store = PseudoLabelStore(LocalObjects(labelled_discs[1]))
    before = store.version(0)
    after = store.begin(replace(before.info, round=1, parent=before.name), "resume")
    assert copy_plans(before, after) == 9
    rows = []
    for outcome in before.outcomes():
        found = outcome.instances
        if found is not None:
            is_kept = outcome.record.image_id != "1.png"
            stable = replace(found, stabilities=np.float32([2.5]))
            rows.append(replace(outcome, instances=stable.keep(np.array([is_kept]))))
        else:
            rows.append(outcome)
    after.commit(0, rows)
    after.finish()
    return before, after


def truths_of(version):
    return [
        AnnotatedImage(
            coco_id=None,
            path=outcome.record.path,
            size=outcome.instances.size,
            rles=outcome.instances.rles,
            boxes_xywh=xyxy_to_xywh(outcome.instances.boxes_xyxy).astype(float),
            areas=outcome.instances.areas.astype(float),
            is_crowd=np.zeros(1, bool),
        )
        for outcome in version.outcomes()
        if outcome.instances is not None
    ]


def test_figures_of_two_rounds(rounds):
    before, after = rounds
    config = SelfTrainingConfig(
        training=TrainingConfig(selection=SelectionConfig(min_score=0.3)),
        later=LaterRoundsConfig(selection=SelectionConfig()),
    )
    first = measure_round(before, None, config, truths_of(before))
    assert (first.round, first.labelled, first.masks, first.learned) == (0, 5, 5, 4)
    assert (first.mean_stability, first.change, first.mask_ap) == (None, None, pytest.approx(1))
    second = measure_round(after, before, config, truths_of(before))
    assert (second.round, second.labelled, second.masks, second.learned) == (1, 4, 4, 4)
    assert second.mean_stability == 2.5
    # Of what is learned from nothing changed: the disc that is gone has a score of 0.1.
    assert second.change == pytest.approx(0)
    assert second.mask_ap == pytest.approx(0.8, abs=0.01)
    assert list(before.evaluations()) == list(after.evaluations())
    everything = replace(config, training=TrainingConfig())
    assert measure_round(after, before, everything, None).change == pytest.approx(1 - 8 / 9)
    assert measure_round(after, before, everything, None).mask_ap is None
