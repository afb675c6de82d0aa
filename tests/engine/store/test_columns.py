from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import StoreError
from engine.masks.instances import Instances
from engine.objects.local import LocalObjects
from engine.objects.memory import MemoryObjects
from engine.store.columns import ShardColumns
from engine.store.pseudo_labels import PseudoLabelStore, Version
from engine.store.version_info import VersionInfo
from engine.types import ImageRecord, Outcome, Reason, Status

INFO = VersionInfo(round=0, configuration={}, weights_digest="0", parent=None, code_version="1", device="cpu")


def labelled(name: str, *scores: float) -> Outcome:
    count = len(scores)
    instances = Instances(
        size=(2, 3),
        method="promerge",
        rles=(b"06",) * count,
        boxes_xyxy=np.array([[0, 0, 3, 2]] * count, np.int32).reshape(-1, 4),
        areas=np.full(count, 6),
        scores=np.array(scores, np.float32),
        stabilities=np.array([np.nan, *scores[1:]], np.float32),
    )
    record = ImageRecord(image_id=name, path=name, coco_id=7)
    return Outcome(record=record, status=Status.LABELLED, height=2, width=3, sha256="ab", instances=instances)


def rejected(name: str) -> Outcome:
    record = ImageRecord(image_id=name, path=name)
    return Outcome(record=record, status=Status.REJECTED, reason=Reason.TRUNCATED)


def committed(objects: MemoryObjects | LocalObjects, *shards: list[Outcome]) -> Version:
    version = PseudoLabelStore(objects).begin(INFO, "resume")
    for number, rows in enumerate(shards):
        version.commit(number, rows)
    return version


@pytest.fixture
def columns() -> ShardColumns:
    version = committed(MemoryObjects(), [labelled("a", 0.5, 0.25), rejected("b"), labelled("c", 1.0)])
    (columns,) = version.columns()
    return columns


def test_columns_agree_with_the_rows(columns: ShardColumns) -> None:
    assert columns.shard == 0
    assert columns.images["image_id"].to_pylist() == ["a", "b", "c"]
    assert columns.images["coco_id"].to_pylist() == [7, None, 7]
    assert columns.heights.tolist() == [2, 0, 2]
    assert columns.widths.tolist() == [3, 0, 3]
    assert columns.offsets.tolist() == [0, 2, 2, 3]
    assert columns.counts.tolist() == [2, 0, 1]
    assert columns.image_of_instance.tolist() == [0, 0, 2]
    assert columns.instances["rle"].to_pylist() == ["06"] * 3
    assert columns.boxes_xyxy.tolist() == [[0, 0, 3, 2]] * 3
    assert columns.areas.tolist() == [6, 6, 6]
    assert columns.scores.tolist() == [0.5, 0.25, 1.0]
    assert np.array_equal(columns.stabilities, [np.nan, 0.25, np.nan], equal_nan=True)


def test_instances_and_images_are_selected_by_mask(columns: ShardColumns) -> None:
    fewer = columns.keep_instances(np.array([False, True, True]))
    assert fewer.num_images == 3
    assert fewer.offsets.tolist() == [0, 1, 1, 2]
    assert fewer.scores.tolist() == [0.25, 1.0]
    last = fewer.keep_images(np.array([False, True, True]))
    assert last.images["image_id"].to_pylist() == ["b", "c"]
    assert last.offsets.tolist() == [0, 0, 1]
    assert last.boxes_xyxy.tolist() == [[0, 0, 3, 2]]
    nothing = last.keep_images(np.zeros(2, bool))
    assert (nothing.num_images, len(nothing.scores), nothing.offsets.tolist()) == (0, 0, [0])


def test_a_shard_without_instances() -> None:
    (columns,) = committed(MemoryObjects(), [rejected("a")]).columns()
    assert columns.offsets.tolist() == [0, 0]
    assert columns.boxes_xyxy.shape == (0, 4)
    assert columns.stabilities.shape == (0,)


def test_one_column_of_all_shards() -> None:
    version = committed(MemoryObjects(), [labelled("a", 0.5, 0.25), rejected("b")], [labelled("c", 1.0)])
    assert [part.tolist() for part in version.instance_columns("score")] == [[0.5, 0.25], [1.0]]
    stabilities = np.concatenate(list(version.instance_columns("stability")))
    assert np.array_equal(stabilities, [np.nan, 0.25, np.nan], equal_nan=True)


def test_damaged_and_foreign_files_are_errors(tmp_path: Path) -> None:
    version = committed(LocalObjects(tmp_path), [labelled(f"{i}", 0.5, 0.25) for i in range(100)])
    path = tmp_path / version.name / "shard-000000.parquet"
    whole = path.read_bytes()
    position = pq.read_metadata(path).row_group(0).column(0).data_page_offset + 60
    path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
    with pytest.raises(StoreError, match="damaged"):
        list(version.columns())
    path.write_bytes(whole[:-5])
    with pytest.raises(StoreError, match="not a file of this store"):
        list(version.columns())
    table = pq.read_table(pa.BufferReader(whole))
    pq.write_table(table.slice(0, 99), path)
    with pytest.raises(StoreError, match="not those that were written"):
        list(version.columns())
    pq.write_table(table.replace_schema_metadata({}), path)
    with pytest.raises(StoreError, match="not a file of this store"):
        list(version.instance_columns("score"))
