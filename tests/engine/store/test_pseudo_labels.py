import json
import random
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


def test_rows_survive_a_round_trip() -> None:
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


def test_shards_without_the_columns_of_partitions_can_be_read() -> None:
    table = pq.read_table(pa.BufferReader(schema.encode_shard("v", 0, [labelled("a")])))
    footer = schema.read_footer(table.schema, "new")
    old = table.drop_columns(["objective", "gap"])
    data = schema._encode(old, {**footer, "digest": schema._digest(old.to_pylist())})
    (row,) = schema.decode_shard(data, "old")[1]
    assert as_values(row) == as_values(replace(labelled("a"), optimality=None))


def test_a_committed_shard_is_not_replaced() -> None:
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


def test_the_manifest_agrees_with_the_footers() -> None:
    version = begun()
    version.commit(0, [labelled("a")])
    version.commit(1, [rejected("b")])
    footers = [version.summary(0), version.summary(1)]
    assert not version.is_finished()
    assert version.summaries() == footers
    version.finish()
    assert version.is_finished()
    assert version.summaries() == footers


def test_finishing_a_version_reads_only_the_ends_of_its_shards() -> None:
    class Counting(MemoryObjects):
        bytes_read = 0

        def read_range(self, key: str, start: int, size: int) -> bytes:
            data = super().read_range(key, start, size)
            self.bytes_read += len(data)
            return data

    objects = Counting()
    version = begun(objects)
    for shard in range(2):
        details = [random.Random(i).randbytes(150).hex() for i in range(1000)]
        version.commit(shard, [replace(rejected(f"{shard}-{detail}"), detail=detail) for detail in details])
    summaries = version.finish()
    assert [(summary.shard, summary.images) for summary in summaries] == [(0, 1000), (1, 1000)]
    assert objects.bytes_read < 0.5 * sum(objects.size(key) for key in objects.keys(f"{version.name}/shard-"))


@pytest.mark.parametrize("tail_bytes", [8, 16, 1 << 20])
def test_a_footer_longer_than_the_first_read_is_read_with_a_second(tail_bytes: int) -> None:
    data = schema.encode_shard("v", 3, [labelled("a"), rejected("b")])
    reads = []

    def read_range(start: int, size: int) -> bytes:
        reads.append(size)
        return data[start : start + size]

    summary = schema.read_summary(read_range, len(data), "shard", tail_bytes=tail_bytes)
    assert summary == schema.decode_shard(data, "shard")[0]
    assert len(reads) == (1 if tail_bytes > len(data) else 2)


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"x" * 100, b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1"]
)
def test_the_error_for_a_file_that_is_no_shard_names_it(content: bytes) -> None:
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
    version.record_plan(replace(plans[0], records=()))  # a recorded plan is not replaced
    assert list(version.plans()) == plans


def test_a_damaged_shard_is_an_error(tmp_path: Path) -> None:
    version = PseudoLabelStore(LocalObjects(tmp_path)).begin(INFO, "resume")
    version.commit(0, [labelled("a")])
    path = tmp_path / version.name / "shard-000000.parquet"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(StoreError, match="shard-000000"):
        version.shard(0)


def test_changed_rows_are_an_error(tmp_path: Path) -> None:
    version = PseudoLabelStore(LocalObjects(tmp_path)).begin(INFO, "resume")
    version.commit(0, [labelled("a"), rejected("b")])
    path = tmp_path / version.name / "shard-000000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 1), path)
    with pytest.raises(StoreError, match="not those that were written"):
        version.shard(0)


def test_the_same_configuration_continues_the_same_version() -> None:
    store = PseudoLabelStore(MemoryObjects())
    first = store.begin(INFO, "resume")
    # Device and code version are recorded, but are not part of the digest.
    again = store.begin(replace(INFO, device="cuda", code_version="1.1"), "resume")
    assert again.name == first.name
    assert again.info == INFO
    assert store.version().name == first.name


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            replace(INFO, configuration={"method": "promerge", "promerge": {"tau_b": 0.3}}),
            "promerge.tau_b is 0.2",
        ),
        (replace(INFO, weights_digest="9999"), "weights is '0123' there, '9999' here"),
    ],
)
def test_another_configuration_is_refused(other: VersionInfo, message: str) -> None:
    store = PseudoLabelStore(MemoryObjects())
    store.begin(INFO, "resume")
    with pytest.raises(StoreError, match="--overwrite") as caught:
        store.begin(other, "resume")
    assert message in str(caught.value)


def test_overwriting_switches_versions_when_the_new_one_is_finished() -> None:
    store = PseudoLabelStore(MemoryObjects())
    old = store.begin(INFO, "resume")
    other = replace(INFO, weights_digest="9999")
    new = store.begin(other, "overwrite")
    assert store.version().name == old.name
    # A second call continues the unfinished version.
    assert store.begin(other, "overwrite").name == new.name
    new.commit(0, [labelled("a")])
    new.finish()
    assert store.version().name == new.name
    # A third call begins another version; the finished one stays current until that is finished.
    assert store.begin(other, "overwrite").name not in (old.name, new.name)
    assert store.version().name == new.name


def test_runs_are_listed_in_order() -> None:
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


def test_rounds_and_stores_without_rounds() -> None:
    store = PseudoLabelStore(MemoryObjects())
    with pytest.raises(StoreError, match="no labels yet"):
        store.version()
    store.begin(INFO, "resume")
    store.begin(replace(INFO, round=1), "resume")
    assert store.rounds() == [0, 1]
    assert store.version().info.round == 1
    with pytest.raises(StoreError, match="no round 5"):
        store.version(5)


def test_evaluations_are_recorded_by_digest() -> None:
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


def test_a_version_with_a_missing_shard_is_not_finished() -> None:
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


def test_the_error_for_a_damaged_plan_does_not_advise_to_remove_it() -> None:
    objects = MemoryObjects()
    version = PseudoLabelStore(objects).begin(INFO, "resume")
    objects.write(f"{version.name}/plan/000000.parquet", b"damaged")
    with pytest.raises(StoreError, match=r"plan/000000\.parquet is damaged.*: restore it, or .*--overwrite"):
        list(version.plans())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"round": 0, "maker": "another"}'])
def test_an_unreadable_description_is_an_error(data: bytes) -> None:
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


def test_two_jobs_with_different_configurations_cannot_begin_the_same_round() -> None:
    class Slow(MemoryObjects):
        """Another job begins the round just before this one creates it."""

        def create(self, key: str, data: bytes) -> bool:
            if key == "round-000.json":
                other = replace(INFO, configuration={"method": "multicut"})
                self.write(f"{other.name}/version.json", json.dumps(asdict(other)).encode())
                self.write(key, json.dumps({"version": other.name}).encode())
            return super().create(key, data)

    with pytest.raises(StoreError, match="of another configuration"):
        PseudoLabelStore(Slow()).begin(INFO, "resume")


def test_rows_made_again_leave_the_bytes_of_an_undisturbed_shard() -> None:
    undisturbed, disturbed = MemoryObjects(), MemoryObjects()
    for objects, second in ((undisturbed, labelled("b")), (disturbed, rejected("b"))):
        version = begun(objects)
        version.commit(0, [labelled("a"), second])
        version.commit(1, [labelled("c")])
        version.finish()
    version = begun(disturbed)
    before = version.content_digest()
    found = version.rows_with(frozenset({Reason.TRUNCATED, Reason.MISSING}))
    assert found == {0: [rejected("b").record]}
    assert version.rows_with(frozenset({Reason.MISSING})) == {}
    version.replace_rows(0, [replace(labelled("b"))])
    assert not version.is_finished()
    version.finish()
    assert version.is_finished()
    assert version.content_digest() == begun(undisturbed).content_digest() != before
    for key in list(undisturbed.keys()):
        assert disturbed.read(key) == undisturbed.read(key)
