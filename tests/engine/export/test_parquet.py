from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pytest

from engine.export.batch import ExportReport, export_batches
from engine.export.parquet import open_parquet
from engine.export.split import SplitConfig
from engine.masks.rle import decode_rles
from engine.objects.object_store import open_objects
from engine.store.selection import Selection, SelectionConfig


@pytest.mark.parametrize("has_images", [False, True])
def test_pyarrow_reads_the_same_rows(labelled: Any, tmp_path: Path, has_images: bool) -> None:
    selection, split = Selection(config=SelectionConfig(max_per_image=2)), SplitConfig(val_fraction=0.3)
    corpus = labelled.corpus if has_images else None
    batches = export_batches(labelled.version, selection, split, corpus, ExportReport())
    with open_parquet(open_objects(str(tmp_path / "out")), has_images, max_images=7) as writer:
        for batch in batches:
            writer.add(batch)
    assert len(list((tmp_path / "out/train").iterdir())) == 2
    rows = []
    for name in ("train", "val"):
        table = pyarrow.dataset.dataset(tmp_path / "out" / name).to_table()
        assert set(table["split"].to_pylist()) == {name}
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
