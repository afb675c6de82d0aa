import hashlib
import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.masks.instances import Instances
from engine.objects.object_store import open_objects
from engine.store.pseudo_labels import PseudoLabelStore
from engine.store.version_info import VersionInfo
from engine.types import ImageRecord, Outcome, Reason, Status

INFO = VersionInfo(round=0, configuration={}, weights_digest="0", parent=None, code_version="1", device="cpu")
# A bitmap of 3 x 2 black pixels.
FILE = b"BM" + struct.pack("<IIIIiiHHIIiiII", 78, 0, 54, 40, 3, 2, 1, 24, 0, 24, 0, 0, 0, 0) + bytes(24)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two images with a mask, and one that could not be read."""
    found = Instances(
        size=(2, 3),
        method="promerge",
        rles=(b"06",),
        boxes_xyxy=np.array([[0, 0, 3, 2]], np.int32),
        areas=np.array([6]),
        scores=np.array([0.5], np.float32),
        stabilities=np.array([np.nan], np.float32),
    )
    rows = [
        Outcome(
            record=ImageRecord(image_id=name, path=name),
            status=Status.LABELLED,
            height=2,
            width=3,
            sha256=hashlib.sha256(FILE).hexdigest(),
            instances=found,
        )
        for name in ("a.bmp", "b.bmp")
    ]
    broken = ImageRecord(image_id="c.bmp", path="c.bmp")
    rows.append(Outcome(record=broken, status=Status.REJECTED, reason=Reason.TRUNCATED))
    version = PseudoLabelStore(open_objects(str(tmp_path / "store"))).begin(INFO, "resume")
    version.commit(0, rows)
    return tmp_path / "store"


def test_the_job_exports_and_lists_rejected_images(
    run_here: Callable[..., subprocess.CompletedProcess[str]], store: Path, tmp_path: Path
) -> None:
    output = tmp_path / "coco"
    flags = ("--store", str(store), "--format", "coco", "--output", str(output), "--val-fraction", "0")
    result = run_here("export", *flags, "--min-score", "0.5", "--max-per-image", "3")
    assert result.returncode == 0, result.stderr
    assert "truncated" in result.stdout
    assert "not finished" in result.stdout
    content = json.loads((output / "annotations/instances_train.json").read_text())
    assert (len(content["images"]), len(content["annotations"])) == (2, 2)


def test_messages_of_the_job(
    run_here: Callable[..., subprocess.CompletedProcess[str]], store: Path, tmp_path: Path
) -> None:
    PseudoLabelStore(open_objects(str(store))).version().finish()
    for folder in ("images", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images/a.bmp").write_bytes(FILE)
    (tmp_path / "elsewhere/another.bmp").touch()
    flags = ("--store", str(store), "--output", str(tmp_path / "out"), "--format", "coco")
    flags += ("--val-fraction", "0")
    mistyped = run_here("export", *flags, "--corpus", str(tmp_path / "elsewhere"))
    assert (mistyped.returncode, mistyped.stderr.count("\n")) == (2, 1)
    assert "none of 2 images are in" in mistyped.stderr
    done = run_here("export", *flags, "--corpus", str(tmp_path / "images"))
    assert done.returncode == 0
    assert "left out 'b.bmp': missing" in done.stdout
    assert "the val split is empty (--val-fraction 0)\n" in done.stdout
    again = run_here("export", *flags, "--corpus", str(tmp_path / "images"))
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True)
    other = run_here("export", *flags)
    assert other.returncode == 2
    assert "images is True there, False here" in other.stderr
    again = run_here("export", *flags, "--overwrite")
    assert (again.returncode, "export: " in again.stdout) == (0, True)
    yolo = run_here("export", *flags[:4], "--format", "yolo")
    assert (yolo.returncode, yolo.stderr.count("\n")) == (2, 1)
    missing = run_here("export", *flags, "--round", "3")
    assert (missing.returncode, "no round 3" in missing.stderr) == (2, True)
