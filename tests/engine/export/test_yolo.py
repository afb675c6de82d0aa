import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from engine.export.export import ExportConfig, export_version
from engine.export.images import safe_name
from engine.export.split import SplitConfig
from engine.objects.object_store import open_objects

with warnings.catch_warnings():
    # It warns that OpenCV is missing.
    warnings.simplefilter("ignore", UserWarning)
    import supervision


@pytest.mark.parametrize(("val_fraction", "split"), [(0.0, "train"), (0.999, "val")])
def test_an_empty_split_points_to_the_other_one(
    make_labelled: Callable[..., Any], tmp_path: Path, val_fraction: float, split: str
) -> None:
    labelled, out = make_labelled(2), tmp_path / "out"
    config = ExportConfig(format="yolo", split=SplitConfig(val_fraction=val_fraction))
    export_version(labelled.version, config, open_objects(str(out)), corpus=labelled.corpus)
    described = yaml.safe_load((out / "data.yaml").read_text())
    assert (described["train"], described["val"]) == (f"images/{split}",) * 2
    assert len(list((out / "images" / split).iterdir())) == 3


def test_supervision_reads_the_same_masks(labelled: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = ExportConfig(format="yolo", split=SplitConfig(val_fraction=0.3))
    export_version(labelled.version, config, open_objects(str(out)), corpus=labelled.corpus)
    masks_by_name = {safe_name(name): masks for name, masks in labelled.masks.items()}
    described = yaml.safe_load((out / "data.yaml").read_text())
    assert described["names"] == {0: "object"}
    seen = []
    for split in ("train", "val"):
        assert described[split] == f"images/{split}"
        dataset = supervision.DetectionDataset.from_yolo(
            images_directory_path=str(out / "images" / split),
            annotations_directory_path=str(out / "labels" / split),
            data_yaml_path=str(out / "data.yaml"),
        )
        assert len(list((out / "labels" / split).iterdir())) == len(dataset)
        for path, image, detections in dataset:
            seen.append(Path(path).stem)
            masks = masks_by_name[Path(path).stem]
            assert image.shape == (24, 40, 3)
            assert len(detections) == len(masks)
            for read, mask in zip(detections.mask if len(masks) else (), masks, strict=True):
                assert read[mask].all()
                # A bridge to a hole runs over the mask's own pixels.
                assert np.array_equal(read, mask)
    assert sorted(seen) == sorted(masks_by_name)
