import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.store.objects import open_objects
from engine.store.pseudo_labels import PseudoLabelStore, VersionInfo
from engine.types import ImageRecord, Instances, Outcome, Reason, Status
from jobs.console import run_job as exit_after
from jobs.export import ExportArguments, main

INFO = VersionInfo(round=0, configuration={}, weights_digest="0", parent=None, code_version="1", device="cpu")


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
            sha256="0",
            instances=found,
        )
        for name in ("a.jpg", "b.jpg")
    ]
    broken = ImageRecord(image_id="c.jpg", path="c.jpg")
    rows.append(Outcome(record=broken, status=Status.REJECTED, reason=Reason.TRUNCATED))
    version = PseudoLabelStore(open_objects(str(tmp_path / "store"))).begin(INFO, "resume")
    version.commit(0, rows)
    return tmp_path / "store"


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str
) -> tuple[int, str, str]:
    """The exit code, and what was printed and what was complained of."""
    monkeypatch.setattr("sys.argv", ["export.py", *flags])
    with pytest.raises(SystemExit) as caught:
        exit_after(ExportArguments, main)
    said = capsys.readouterr()
    return caught.value.code, said.out, said.err


def test_the_job_exports_and_says_what_it_left_out(
    run_job: Callable[..., subprocess.CompletedProcess[str]], store: Path, tmp_path: Path
) -> None:
    output = tmp_path / "coco"
    flags = ("--store", str(store), "--format", "coco", "--output", str(output), "--val-fraction", "0")
    result = run_job("export", *flags, "--min-score", "0.5", "--max-per-image", "3")
    assert result.returncode == 0, result.stderr
    assert "truncated" in result.stdout
    assert "not finished" in result.stdout
    content = json.loads((output / "annotations/instances_train.json").read_text())
    assert (len(content["images"]), len(content["annotations"])) == (2, 2)


def test_the_job_s_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Path, tmp_path: Path
) -> None:
    PseudoLabelStore(open_objects(str(store))).version().finish()
    (tmp_path / "images").mkdir()
    flags = ("--store", str(store), "--output", str(tmp_path / "out"), "--format", "coco")
    code, out, _ = run(monkeypatch, capsys, *flags, "--corpus", str(tmp_path / "images"))
    assert code == 0
    assert "left out 'a.jpg': missing" in out
    code, out, _ = run(monkeypatch, capsys, *flags, "--corpus", str(tmp_path / "images"))
    assert (code, "nothing to do" in out) == (0, True)
    code, _, err = run(monkeypatch, capsys, *flags)
    assert code == 2
    assert "images is True there, False here" in err
    code, out, _ = run(monkeypatch, capsys, *flags, "--overwrite")
    assert (code, "export: " in out) == (0, True)
    code, _, err = run(monkeypatch, capsys, *flags[:4], "--format", "yolo")
    assert (code, err.count("\n")) == (2, 1)
    code, _, err = run(monkeypatch, capsys, *flags, "--round", "3")
    assert (code, "no round 3" in err) == (2, True)
