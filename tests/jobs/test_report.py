import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.objects.object_store import open_objects
from engine.store.pseudo_labels import PseudoLabelStore
from engine.store.version_info import VersionInfo
from engine.types import ImageRecord, Outcome, Reason, Status
from jobs.report import ReportArguments, main

INFO = VersionInfo(round=0, configuration={}, weights_digest="0", parent=None, code_version="1", device="cpu")


def test_the_job_writes_a_page(
    run_here: Callable[..., subprocess.CompletedProcess[str]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    s3_server: object,
) -> None:
    version = PseudoLabelStore(open_objects(str(tmp_path / "store"))).begin(INFO, "resume")
    record = ImageRecord(image_id="a.jpg", path="a.jpg")
    version.commit(0, [Outcome(record=record, status=Status.REJECTED, reason=Reason.EMPTY_FILE)])
    flags = ("--store", str(tmp_path / "store"), "--output", str(tmp_path / "pages/report.html"))
    result = run_here("report", *flags, "--round", "0")
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "pages/report.html").read_text()
    assert "empty_file" in page
    main(ReportArguments(store=str(tmp_path / "store"), output="s3://bucket/report.html"))
    assert "report: s3://bucket/report.html" in capsys.readouterr().out
    assert open_objects("s3://bucket").read("report.html").decode() == page
    missing = run_here("report", "--store", str(tmp_path / "none"), "--output", str(tmp_path / "x.html"))
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
