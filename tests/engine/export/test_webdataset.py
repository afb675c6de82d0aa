import gc
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from pycocotools import mask as coco_mask

from engine.export.batch import ExportReport, export_batches
from engine.export.export import ExportConfig, export_version
from engine.export.split import SplitConfig
from engine.export.webdataset import open_webdataset
from engine.objects.object_store import open_objects
from engine.store.selection import Selection, SelectionConfig

CONFIG = ExportConfig(format="webdataset", split=SplitConfig(val_fraction=0.3))


def tars(folder: Path, split: str) -> list[str]:
    return sorted(str(path) for path in (folder / split).glob("*.tar"))


def read_samples(paths: list[str], *decoders: str) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        # webdataset leaves tars open for the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        samples = webdataset.WebDataset(paths, shardshuffle=False)
        found = list(samples.decode(*decoders) if decoders else samples)
        del samples
        gc.collect()
    return found


def test_webdataset_reads_the_same_images_and_masks(labelled: Any, tmp_path: Path) -> None:
    selection = Selection(config=SelectionConfig())
    batches = export_batches(labelled.version, selection, CONFIG.split, labelled.corpus, ExportReport())
    with open_webdataset(open_objects(str(tmp_path / "out")), max_images=5) as writer:
        for batch in batches:
            writer.add(batch)
    assert len(tars(tmp_path / "out", "train")) == 2
    seen = []
    for split in ("train", "val"):
        for sample in read_samples(tars(tmp_path / "out", split), "rgb8"):
            described = sample["json"]
            seen.append(described["image_id"])
            suffix = described["path"].rsplit(".", 1)[1]
            assert sample[suffix].shape == (24, 40, 3)
            masks = [coco_mask.decode(annotation["segmentation"]) for annotation in described["annotations"]]
            expected = labelled.masks[described["image_id"]]
            assert np.array_equal(np.array(masks).reshape(expected.shape), expected)
    assert sorted(seen) == sorted(labelled.masks)


def test_images_are_copied_unchanged_and_equal_exports_have_equal_tars(labelled: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_version(labelled.version, CONFIG, open_objects(str(tmp_path / name)), corpus=labelled.corpus)
    for split in ("train", "val"):
        (one,), (two,) = tars(tmp_path / "one", split), tars(tmp_path / "two", split)
        assert Path(one).read_bytes() == Path(two).read_bytes()
        for sample in read_samples([one]):
            path = json.loads(sample["json"])["path"]
            assert sample[path.rsplit(".", 1)[1]] == (labelled.folder / path).read_bytes()
