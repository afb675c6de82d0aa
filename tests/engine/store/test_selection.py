import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigurationError, StoreError
from engine.masks.instances import Instances
from engine.masks.rle import encode_rles
from engine.objects.memory import MemoryObjects
from engine.store.pseudo_labels import PseudoLabelStore, Version
from engine.store.selection import (
    Selection,
    SelectionConfig,
    kept_instances,
    plan_selection,
    score_cut,
    select_columns,
    select_instances,
    select_outcomes,
)
from engine.store.version_info import VersionInfo
from engine.types import ImageRecord, Outcome, Reason, Status


def instances(*scores: float, stabilities: tuple[float, ...] | None = None) -> Instances:
    count = len(scores)
    masks = np.zeros((count, 48, 64), bool)
    masks[np.arange(count), 0, np.arange(count)] = True
    return Instances(
        size=(48, 64),
        method="promerge",
        rles=encode_rles(masks),
        boxes_xyxy=np.array([[i, 0, i + 1, 1] for i in range(count)], np.int32).reshape(count, 4),
        areas=np.arange(count),
        scores=np.array(scores, np.float32),
        stabilities=np.array(stabilities or [np.nan] * count, np.float32),
    )


def store_with(*shards: list[Instances]) -> Version:
    info = VersionInfo(
        round=0, configuration={}, weights_digest="0", parent=None, code_version="1", device="cpu"
    )
    version = PseudoLabelStore(MemoryObjects()).begin(info, "resume")
    for number, rows in enumerate(shards):
        version.commit(number, [outcome(f"{number}-{i}", row) for i, row in enumerate(rows)])
    return version


def outcome(name: str, found: Instances) -> Outcome:
    record = ImageRecord(image_id=name, path=name)
    if len(found) == 0:
        return Outcome(
            record=record, status=Status.NO_OBJECT, reason=Reason.NO_FOREGROUND, height=48, width=64
        )
    return Outcome(record=record, status=Status.LABELLED, height=48, width=64, sha256="0", instances=found)


def selected_scores(version: Version, config: SelectionConfig) -> list[list[float]]:
    return [
        [] if row.instances is None else row.instances.scores.tolist()
        for row in select_outcomes(version, config)
    ]


def test_everything_is_selected_by_default() -> None:
    version = store_with([instances(0.5, -0.25), instances()], [instances(0.125)])
    assert selected_scores(version, SelectionConfig()) == [[0.5, -0.25], [], [0.125]]


def test_top_percent_refers_to_the_whole_store() -> None:
    version = store_with([instances(0.9, 0.8, 0.7), instances()], [instances(0.1), instances(0.75)])
    chosen = selected_scores(version, SelectionConfig(top_percent=60))
    assert chosen == [pytest.approx([0.9, 0.8]), [], [], pytest.approx([0.75])]


def test_ties_with_the_last_selected_score_are_selected() -> None:
    version = store_with([instances(0.5, 0.25)], [instances(0.25, 0.25, 0.125)])
    assert selected_scores(version, SelectionConfig(top_percent=40)) == [[0.5, 0.25], [0.25, 0.25]]


@given(
    st.lists(st.lists(st.sampled_from([-0.5, 0.0, 0.125, 0.25, 1.0])), max_size=5),
    st.floats(0.01, 100),
)
def test_the_cut_is_the_highest_score_that_selects_the_share(
    pieces: list[list[float]], top_percent: float
) -> None:
    scores = np.array([score for piece in pieces for score in piece], np.float32)
    cut = score_cut([np.array(piece, np.float32) for piece in pieces], top_percent)
    if len(scores) == 0:
        assert cut == -math.inf
        return
    wanted = len(scores) * top_percent / 100
    assert (scores >= cut).sum() >= wanted - 1e-6
    assert (scores > cut).sum() < max(wanted, 1)


def test_all_conditions_apply_and_max_per_image_comes_last() -> None:
    found = instances(0.9, 0.8, 0.7, 0.6, stabilities=(1.0, 3.0, 2.0, 3.0))
    selection = plan_selection(
        store_with([found]), SelectionConfig(min_score=0.7, min_stability=2, max_per_image=1)
    )
    kept = select_instances(found, selection)
    assert kept.rles == found.rles[1:2]
    assert kept.boxes_xyxy.tolist() == [[1, 0, 2, 1]]
    assert kept.areas.tolist() == [1]
    assert kept.stabilities.tolist() == [3.0]


def test_a_stored_score_meets_its_own_bound() -> None:
    # In 32 bits, 0.1 is a little more than 0.1 and 0.7 a little less than 0.7.
    for score in (0.1, 0.7):
        selection = Selection(config=SelectionConfig(min_score=score, min_stability=score))
        found = np.array([score], np.float32)
        assert kept_instances(selection, np.array([0, 1]), found, found).tolist() == [True]


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_columns_and_objects_are_selected_alike(data: st.DataObject) -> None:
    scores = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75]), max_size=4).map(sorted)
    rows = [instances(*reversed(row)) for row in data.draw(st.lists(scores, min_size=1, max_size=5))]
    config = SelectionConfig(
        min_score=data.draw(st.none() | st.just(0.25)),
        top_percent=data.draw(st.none() | st.sampled_from([20, 50, 100])),
        max_per_image=data.draw(st.none() | st.integers(1, 3)),
    )
    version = store_with(rows)
    (columns,) = version.columns()
    selected = select_columns(columns, plan_selection(version, config))
    expected = selected_scores(version, config)
    assert selected.counts.tolist() == [len(row) for row in expected]
    assert selected.scores.tolist() == [score for row in expected for score in row]


def test_a_stability_that_was_never_measured_is_an_error() -> None:
    with pytest.raises(StoreError, match="leave it out"):
        plan_selection(store_with([instances(0.5)]), SelectionConfig(min_stability=1))


@pytest.mark.parametrize(
    "wrong",
    [{"top_percent": 0}, {"top_percent": 101}, {"max_per_image": 0}, {"min_score": math.nan},
     {"min_stability": math.nan}],
)  # fmt: skip
def test_settings_out_of_bounds_are_errors(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        SelectionConfig(**wrong)
