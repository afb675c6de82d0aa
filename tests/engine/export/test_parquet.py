from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pytest

from engine.export import ExportConfig, export_version, rolling
from engine.export.split import SplitConfig
from engine.masks.rle import decode_rles
from engine.objects.object_store import open_objects
from engine.store.selection import SelectionConfig


@pytest.mark.parametrize("has_images", [False, True])
def test_pyarrow_reads_the_rows_back(
    labelled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_images: bool
) -> None:
    monkeypatch.setattr(rolling, "_FULL_IMAGES", 7)
    config = ExportConfig(
        format="parquet",
        selection=SelectionConfig(max_per_image=2),
        split=SplitConfig(val_fraction=0.3),
    )
    corpus = labelled.corpus if has_images else None
    export_version(labelled.version, config, open_objects(str(tmp_path / "out")), corpus=corpus)
    rows = []
    for split in ("train", "val"):
        table = pyarrow.dataset.dataset(tmp_path / "out" / split).to_table()
        assert set(table["split"].to_pylist()) == {split}
        rows += table.to_pylist()
    assert sorted(row["image_id"] for row in rows) == sorted(labelled.masks)
    for row in rows:
        size = (row["height"], row["width"])
        read = decode_rles([instance["rle"].encode() for instance in row["instances"]], size)
        assert np.array_equal(read, labelled.masks[row["image_id"]][:2])
        if has_images:
            assert row["image"] == {
                "bytes": (labelled.folder / row["path"]).read_bytes(),
                "path": row["path"],
            }
        else:
            assert "image" not in row
    assert {row["image_id"]: row["number"] for row in rows}["no object.png"] == 13
