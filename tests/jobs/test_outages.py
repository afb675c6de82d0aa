"""Label jobs whose corpus fails in mid-run: the same command ends with the same bytes."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faulty_proxy import CutBody, Fault, FaultyProxy, Refuse, start_proxy

_JOB = Path(__file__).parents[2] / "jobs/label_folder.py"
QUICK = ("--refine", "none", "--encoder", "descriptor", "--encoder.image-size", "96", "--shard-size", "8")
RunJob = Callable[..., subprocess.CompletedProcess[str]]
LabelsIn = Callable[[Path], dict[str, bytes]]


def flags(corpus: Path | str, store: Path, *more: str) -> tuple[str, ...]:
    return ("label_folder", "--corpus", str(corpus), "--store", str(store), *QUICK, *more)


def stopped(result: subprocess.CompletedProcess[str]) -> str:
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert (result.returncode, len(errors)) == (1, 1), result.stdout + result.stderr
    return errors[0]


@pytest.fixture
def proxy(
    s3_server: Any, image_folder: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultyProxy]:
    """A proxy for a bucket with 24 images below images/."""
    image_folder(24).rename(s3_server.root / "bucket/images")
    with start_proxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def expired(number: int, path: str) -> Fault | None:
    return Refuse(400, "ExpiredToken") if number >= 14 else None


def denied(number: int, path: str) -> Fault | None:
    return Refuse(403, "AccessDenied")


def skewed(number: int, path: str) -> Fault | None:
    return Refuse(403, "RequestTimeTooSkewed") if number % 5 == 4 else None


@pytest.mark.slow
@pytest.mark.parametrize("refusal", [expired, denied, skewed])
def test_a_refusal_in_mid_run_makes_no_row(
    proxy: FaultyProxy,
    run_job: RunJob,
    labels_in: LabelsIn,
    tmp_path: Path,
    refusal: Callable[[int, str], Fault | None],
) -> None:
    command = flags("s3://bucket/images", tmp_path / "store")
    proxy.fault_of = refusal
    assert "the same command goes on" in stopped(run_job(*command))
    assert not list((tmp_path / "store").glob("round-*/manifest.parquet"))
    proxy.fault_of = lambda number, path: None
    assert run_job(*command).returncode == 0
    assert run_job(*flags("s3://bucket/images", tmp_path / "undisturbed")).returncode == 0
    assert labels_in(tmp_path / "store") == labels_in(tmp_path / "undisturbed")


@pytest.mark.slow
def test_passing_errors_leave_no_trace(
    proxy: FaultyProxy,
    run_job: RunJob,
    labels_in: LabelsIn,
    tmp_path: Path,
) -> None:
    def passing(number: int, path: str) -> Fault | None:
        is_first_time = proxy.paths.count(path) == 1
        if path.endswith(("3.png", "7.png")) and is_first_time:
            return Refuse(404, "NoSuchKey")
        return CutBody() if path.endswith("5.png") and is_first_time else None

    proxy.fault_of = passing
    assert run_job(*flags("s3://bucket/images", tmp_path / "store")).returncode == 0
    proxy.fault_of = lambda number, path: None
    assert run_job(*flags("s3://bucket/images", tmp_path / "undisturbed")).returncode == 0
    assert labels_in(tmp_path / "store") == labels_in(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_corpus_that_is_renamed_in_mid_run_makes_no_row(
    image_folder: Callable[[int], Path], run_job: RunJob, labels_in: LabelsIn, tmp_path: Path
) -> None:
    corpus, store = image_folder(400), tmp_path / "store"
    command = [sys.executable, str(_JOB), *flags(corpus, store)[1:]]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while not list(store.glob("round-*/shard-*")) and process.poll() is None:
            time.sleep(0.02)
        corpus.rename(tmp_path / "elsewhere")
        assert process.wait() == 1, (tmp_path / "log").read_text()
    assert "the same command goes on" in (tmp_path / "log").read_text()
    (tmp_path / "elsewhere").rename(corpus)
    assert run_job(*flags(corpus, store)).returncode == 0
    assert run_job(*flags(corpus, tmp_path / "undisturbed")).returncode == 0
    assert labels_in(store) == labels_in(tmp_path / "undisturbed")


@pytest.mark.slow
def test_many_rejected_images_stop_the_run(
    image_folder: Callable[[int], Path], run_job: RunJob, tmp_path: Path
) -> None:
    corpus = image_folder(40)
    for number in range(80):
        (corpus / f"0/broken-{number}.png").write_bytes(b"broken")
    error = stopped(run_job(*flags(corpus, tmp_path / "store")))
    assert "not_an_image" in error
    assert "--max-rejected 0.5" in error
    assert run_job(*flags(corpus, tmp_path / "store", "--max-rejected", "0.8")).returncode == 0


@pytest.mark.slow
def test_a_retry_makes_the_rows_of_these_reasons_again_and_nothing_else(
    image_folder: Callable[[int], Path], run_job: RunJob, labels_in: LabelsIn, tmp_path: Path
) -> None:
    corpus, store = image_folder(20), tmp_path / "store"
    command = flags(corpus, store)
    assert run_job(*flags(corpus, tmp_path / "undisturbed")).returncode == 0
    image, lost = corpus / "0/0002.png", corpus / "1/0003.png"
    data = image.read_bytes()
    image.write_bytes(data[: len(data) // 2])
    lost_data = lost.read_bytes()
    lost.write_bytes(b"broken")
    assert run_job(*command).returncode == 0
    image.write_bytes(data)
    lost.write_bytes(lost_data)
    before = labels_in(store)
    assert run_job(*command, "--retry", "not_an_image").returncode == 0
    after = labels_in(store)
    assert sum(after[name] != before[name] for name in before if "shard-" in name) == 1
    assert run_job(*command, "--retry", "truncated,corrupt,missing").returncode == 0
    assert labels_in(store) == labels_in(tmp_path / "undisturbed")
    refused = run_job(*command, "--retry", "no_foreground")
    assert (refused.returncode, "--retry takes reasons" in refused.stderr) == (2, True)
