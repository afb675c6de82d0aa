import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import ObjectMissing, StoreError
from engine.masks.instances import Instances
from engine.objects.local import LocalObjects
from engine.objects.memory import MemoryObjects
from engine.store import schema
from engine.store.pseudo_labels import PseudoLabelStore, Version
from engine.store.runs import RunRecord
from engine.store.version_info import VersionInfo
from engine.types import ImageRecord, Optimality, Outcome, Reason, ShardPlan, Status

INFO = VersionInfo(
    round=0,
    configuration={"method": "promerge", "promerge": {"tau_b": 0.2}},
    weights_digest="0123",
    parent=None,
    code_version="1.0",
    device="cpu",
)


COLUMNS_SINCE = ("objective", "gap")


def without(row: dict[str, object], names: tuple[str, ...]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name not in names}


def labelled(name: str) -> Outcome:
    instances = Instances(
        size=(2, 3),
        method="promerge",
        rles=(b"123", b"06"),
        boxes_xyxy=np.array([[0, 0, 2, 2], [0, 0, 3, 2]], np.int32),
        areas=np.array([2, 6]),
        scores=np.array([0.1, -0.3], np.float32),
        stabilities=np.array([np.nan, 2.5], np.float32),
    )
    record = ImageRecord(image_id=name, path=f"{name}.jpg", coco_id=7)
    return Outcome(
        record=record, status=Status.LABELLED, height=2, width=3, sha256="ab", instances=instances,
        optimality=Optimality(objective=-2.5, gap=0.1),
    )  # fmt: skip


def rejected(name: str) -> Outcome:
    record = ImageRecord(image_id=name, path=name)
    return Outcome(record=record, status=Status.REJECTED, reason=Reason.TRUNCATED, detail="cut\nshort ☃")


def as_values(outcome: Outcome) -> tuple[object, ...]:
    instances = outcome.instances
    arrays = () if instances is None else (
        instances.size, instances.method, instances.rles, instances.boxes_xyxy.tolist(),
        instances.areas.tolist(), instances.scores.tobytes(), instances.stabilities.tobytes(),
    )  # fmt: skip
    return (
        outcome.record, outcome.status, outcome.height, outcome.width, outcome.sha256, outcome.reason,
        outcome.detail, outcome.optimality, arrays,
    )  # fmt: skip


def begun(objects: MemoryObjects | None = None) -> Version:
    return PseudoLabelStore(objects or MemoryObjects()).begin(INFO, "resume")


def test_rows_come_back_as_they_went() -> None:
    version = begun()
    rows = [labelled("a"), rejected("b")]
    version.commit(3, rows)
    assert [as_values(row) for row in version.shard(3)] == [as_values(row) for row in rows]
    assert version.committed() == {3}
    summary = version.summary(3)
    assert (summary.images, summary.labelled, summary.rejected, summary.instances) == (2, 1, 1, 2)
    assert summary.reasons == {"truncated": 1}


def test_any_parquet_reader_can_read_a_shard(tmp_path: Path) -> None:
    version = PseudoLabelStore(LocalObjects(tmp_path)).begin(INFO, "resume")
    version.commit(0, [labelled("a"), rejected("b")])
    table = pq.read_table(tmp_path / version.name / "shard-000000.parquet").to_pylist()
    assert table[0]["instances"][0]["bbox"] == [0, 0, 2, 2]
    assert table[0]["instances"][0]["stability"] is None
    assert (table[0]["objective"], table[0]["gap"], table[1]["gap"]) == (-2.5, 0.1, None)
    assert (table[1]["reason"], table[1]["height"], table[1]["instances"]) == ("truncated", None, [])


def test_shards_from_before_there_were_partitions_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome_row = schema._outcome_row
    monkeypatch.setattr(schema, "_outcome_row", lambda outcome: without(outcome_row(outcome), COLUMNS_SINCE))
    names = [name for name in schema.SHARD_SCHEMA.names if name not in COLUMNS_SINCE]
    old = pa.schema([schema.SHARD_SCHEMA.field(name) for name in names])
    monkeypatch.setattr(schema, "SHARD_SCHEMA", old)
    data = schema.encode_shard("v", 0, [labelled("a")])
    monkeypatch.undo()
    (row,) = schema.decode_shard(data, "old")[1]
    assert as_values(row) == as_values(replace(labelled("a"), optimality=None))


def test_a_committed_shard_stays() -> None:
    version = begun()
    version.commit(0, [labelled("a")])
    version.commit(0, [rejected("b")])
    assert [row.record.image_id for row in version.shard(0)] == ["a"]


def test_a_version_streams_in_order_and_finds_images() -> None:
    version = begun()
    for shard, names in [(1, ["c", "d"]), (0, ["a", "b"])]:
        version.commit(shard, [labelled(name) for name in names])
    assert [row.record.image_id for row in version.outcomes()] == ["a", "b", "c", "d"]
    version.finish()
    assert version.find("c").record.image_id == "c"
    with pytest.raises(ObjectMissing):
        version.find("bb")


def test_the_manifest_says_what_the_footers_say() -> None:
    version = begun()
    version.commit(0, [labelled("a")])
    version.commit(1, [rejected("b")])
    footers = [version.summary(0), version.summary(1)]
    assert not version.is_finished()
    assert version.summaries() == footers
    version.finish()
    assert version.is_finished()
    assert version.summaries() == footers


def test_a_version_is_finished_by_the_ends_of_its_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(MemoryObjects):
        bytes_read = 0

        def read_range(self, key: str, start: int, size: int) -> bytes:
            data = super().read_range(key, start, size)
            self.bytes_read += len(data)
            return data

    objects = Counting()
    version = begun(objects)
    for shard in range(5):
        version.commit(shard, [labelled(f"{shard}-{image:04d}") for image in range(2000)])
    expected = version.finish()
    assert [summary.shard for summary in expected] == list(range(5))
    assert {summary.images for summary in expected} == {2000}
    # A tail that does not hold the whole footer is followed by another read, of just that.
    monkeypatch.setattr(schema, "_TAIL_BYTES", 16)
    objects.bytes_read = 0
    assert version.finish() == expected
    assert objects.bytes_read < 0.5 * sum(objects.size(key) for key in objects.keys(f"{version.name}/shard-"))


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"x" * 100, b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1"]
)
def test_a_shard_that_is_none_is_named(content: bytes) -> None:
    objects = MemoryObjects()
    version = begun(objects)
    objects.write(f"{version.name}/shard-000000.parquet", content)
    with pytest.raises(StoreError, match=r"shard-000000\.parquet is damaged, or not a file of this store"):
        version.finish()


def test_plans_come_back_in_order() -> None:
    version = begun()
    plans = [
        ShardPlan(index=i, records=(ImageRecord(image_id=name, path=name, coco_id=i),), is_last=i == 11)
        for i, name in [(0, "x"), (2, "y"), (11, "z")]
    ]
    for plan in reversed(plans):
        version.record_plan(plan)
    version.record_plan(replace(plans[0], records=()))  # a plan that is recorded stays
    assert list(version.plans()) == plans


def test_damage_is_told(tmp_path: Path) -> None:
    version = PseudoLabelStore(LocalObjects(tmp_path)).begin(INFO, "resume")
    version.commit(0, [labelled("a")])
    path = tmp_path / version.name / "shard-000000.parquet"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(StoreError, match="shard-000000"):
        version.shard(0)


def test_rows_that_were_changed_are_told(tmp_path: Path) -> None:
    version = PseudoLabelStore(LocalObjects(tmp_path)).begin(INFO, "resume")
    version.commit(0, [labelled("a"), rejected("b")])
    path = tmp_path / version.name / "shard-000000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 1), path)
    with pytest.raises(StoreError, match="not those that were written"):
        version.shard(0)


def test_the_same_configuration_goes_on_with_the_same_version() -> None:
    store = PseudoLabelStore(MemoryObjects())
    first = store.begin(INFO, "resume")
    # Device and code version are recorded beside the configuration and decide nothing.
    again = store.begin(replace(INFO, device="cuda", code_version="1.1"), "resume")
    assert again.name == first.name
    assert again.info == INFO
    assert store.version().name == first.name


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            replace(INFO, configuration={"method": "promerge", "promerge": {"tau_b": 0.3}}),
            "promerge.tau_b is 0.2",
        ),
        (replace(INFO, weights_digest="9999"), "weights is '0123' there, '9999' here"),
    ],
)
def test_another_configuration_is_refused(other: VersionInfo, told: str) -> None:
    store = PseudoLabelStore(MemoryObjects())
    store.begin(INFO, "resume")
    with pytest.raises(StoreError, match="--overwrite") as caught:
        store.begin(other, "resume")
    assert told in str(caught.value)


def test_overwriting_switches_when_it_is_whole() -> None:
    store = PseudoLabelStore(MemoryObjects())
    old = store.begin(INFO, "resume")
    other = replace(INFO, weights_digest="9999")
    new = store.begin(other, "overwrite")
    assert store.version().name == old.name
    # A second try goes on with the version that was begun.
    assert store.begin(other, "overwrite").name == new.name
    new.commit(0, [labelled("a")])
    new.finish()
    assert store.version().name == new.name
    # Asked once more, it begins afresh, and the finished one stays until then.
    assert store.begin(other, "overwrite").name not in (old.name, new.name)
    assert store.version().name == new.name


def test_runs_are_kept_in_order() -> None:
    version = begun()
    assert version.runs() == []
    runs = [
        RunRecord(images=images, seconds=seconds, device="cpu", workers={"readers": 1})
        for images, seconds in [(30, 12.0), (5, 0.0)]
    ]
    for run in runs:
        version.record_run(run)
    assert version.runs() == runs
    assert [run.images_per_s for run in runs] == [2.5, 0.0]


def test_rounds_and_stores_without_any() -> None:
    store = PseudoLabelStore(MemoryObjects())
    with pytest.raises(StoreError, match="no labels yet"):
        store.version()
    store.begin(INFO, "resume")
    store.begin(replace(INFO, round=1), "resume")
    assert store.rounds() == [0, 1]
    assert store.version().info.round == 1
    with pytest.raises(StoreError, match="no round 5"):
        store.version(5)


def test_evaluations_lie_beside_the_labels() -> None:
    objects = MemoryObjects()
    version = begun(objects)
    assert version.evaluations() == {}
    version.record_evaluation("b2", {"masks": {"AP": 0.5}})
    version.record_evaluation("a1", {"masks": {"AP": None}})
    version.record_evaluation("b2", {"masks": {"AP": 0.75}})
    assert list(version.evaluations().items()) == [
        ("a1", {"masks": {"AP": None}}),
        ("b2", {"masks": {"AP": 0.75}}),
    ]
    objects.write(f"{version.name}/evaluation/a1.json", b"{")
    with pytest.raises(StoreError, match="evaluate again"):
        version.evaluations()


def test_a_shard_that_is_gone_unfinishes_its_version() -> None:
    objects = MemoryObjects()
    version = PseudoLabelStore(objects).begin(INFO, "resume")
    for index in range(2):
        row = labelled(str(index))
        version.record_plan(ShardPlan(index=index, records=(row.record,), is_last=index == 1))
        version.commit(index, [row])
    version.finish()
    assert version.is_finished()
    objects.delete(f"{version.name}/shard-000001.parquet")
    assert not version.is_finished()
    version.commit(1, [labelled("1")])
    assert version.is_finished()


def test_a_damaged_plan_is_not_to_be_removed() -> None:
    objects = MemoryObjects()
    version = PseudoLabelStore(objects).begin(INFO, "resume")
    objects.write(f"{version.name}/plan/000000.parquet", b"damaged")
    with pytest.raises(StoreError, match=r"plan/000000\.parquet is damaged.*: restore it, or .*--overwrite"):
        list(version.plans())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"round": 0, "maker": "another"}'])
def test_a_description_that_cannot_be_read_is_said_to_be(data: bytes) -> None:
    objects = MemoryObjects()
    store = PseudoLabelStore(objects)
    version = store.begin(INFO, "resume")
    objects.write(f"{version.name}/version.json", data)
    with pytest.raises(StoreError, match=r"version\.json is missing, damaged or of another .*--overwrite"):
        store.begin(INFO, "resume")
    assert store.begin(INFO, "overwrite").info == INFO
    objects.write("round-000.json", data)
    with pytest.raises(StoreError, match=r"round-000\.json is damaged: restore it, or remove it and run"):
        store.begin(INFO, "resume")


def test_two_that_begin_a_round_at_once_do_not_both_go_on() -> None:
    class Slow(MemoryObjects):
        """Another job begins the round after this one has looked whether somebody has."""

        def create(self, key: str, data: bytes) -> bool:
            if key == "round-000.json":
                other = replace(INFO, configuration={"method": "multicut"})
                self.write(f"{other.name}/version.json", json.dumps(asdict(other)).encode())
                self.write(key, json.dumps({"version": other.name}).encode())
            return super().create(key, data)

    with pytest.raises(StoreError, match="of another configuration"):
        PseudoLabelStore(Slow()).begin(INFO, "resume")
