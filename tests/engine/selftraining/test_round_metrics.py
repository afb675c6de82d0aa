"""Metrics of two known rounds of labels."""

import json
from dataclasses import replace

import numpy as np
import pytest

from engine.errors import StoreError
from engine.evaluation.ground_truth import AnnotatedImage
from engine.masks.boxes import xyxy_to_xywh
from engine.objects.local import LocalObjects
from engine.objects.memory import MemoryObjects
from engine.selftraining.lineage import check_next_round, describe_round_training, network_before
from engine.selftraining.round_metrics import (
    describe_measurement,
    keep_metrics,
    measure_round,
    recall_metrics,
)
from engine.selftraining.rounds import LaterRoundsConfig, SelfTrainingConfig
from engine.solo.training_config import TrainingConfig
from engine.store.planning import copy_plans
from engine.store.pseudo_labels import PseudoLabelStore
from engine.store.selection import SelectionConfig


@pytest.fixture
def rounds(labelled_discs):
    """Round 0 of five discs, and round 1 with stabilities and one disc less."""
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


def test_metrics_of_two_rounds(rounds):
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
    # Nothing that is learned changed: the missing disc has a score of 0.1.
    assert second.change == pytest.approx(0)
    assert second.mask_ap == pytest.approx(0.8, abs=0.01)
    assert list(before.evaluations()) == list(after.evaluations())
    everything = replace(config, training=TrainingConfig())
    assert measure_round(after, before, everything, None).change == pytest.approx(1 - 8 / 9)
    assert measure_round(after, before, everything, None).mask_ap is None


def test_metrics_are_recalled_while_nothing_that_they_depend_on_changed(rounds):
    before, after = rounds
    output, config = MemoryObjects(), SelfTrainingConfig()
    measured = describe_measurement(after, before, config, None)
    assert recall_metrics(output, "round-001.json", measured) is None
    metrics = measure_round(after, before, config, None)
    keep_metrics(output, "round-001.json", measured, metrics)
    assert recall_metrics(output, "round-001.json", measured) == metrics
    for other in (
        describe_measurement(after, None, config, None),
        describe_measurement(before, before, config, None),
        describe_measurement(after, before, config, "truth.json"),
        describe_measurement(
            after, before, replace(config, later=LaterRoundsConfig(selection=SelectionConfig())), None
        ),
    ):
        assert recall_metrics(output, "round-001.json", other) is None
    # As earlier versions stored them.
    output.write("round-001.json", json.dumps({"measured": measured, "figures": {}}).encode())
    assert recall_metrics(output, "round-001.json", measured) is None


def test_the_next_round_of_another_training_is_refused(rounds):
    before, _ = rounds
    store = PseudoLabelStore(MemoryObjects())
    config = SelfTrainingConfig()
    first = store.begin(before.info, "resume")
    check_next_round(store, first, config)
    configuration = {"method": "solo", **describe_round_training(config, 0)}
    info = replace(before.info, round=1, parent=first.name, configuration=configuration)
    store.begin(info, "resume").finish()
    check_next_round(store, first, config)
    other = replace(config, training=replace(config.training, batch_size=2))
    with pytest.raises(StoreError, match=r"training\.batch_size is 16 there, 2 here"):
        check_next_round(store, first, other)
    # Where initial weights came from decides nothing.
    solo = replace(config.training.solo, backbone_weights="elsewhere.safetensors")
    check_next_round(store, first, replace(config, training=replace(config.training, solo=solo)))


def test_trainings_start_from_the_network_before():
    output, config = MemoryObjects(), SelfTrainingConfig()
    assert network_before(output, config, 0) is None
    assert network_before(output, config, 2) == f"{output.uri}/round-001/network.safetensors"
    scratch = replace(config, later=LaterRoundsConfig(begin="scratch"))
    assert network_before(output, scratch, 2) is None
