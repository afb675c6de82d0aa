"""Outputs of jobs are checked before the work begins."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import ConfigurationError
from engine.objects.object_store import read_uri
from jobs.cli.output import check_output, write_output


def test_outputs_are_written_wherever_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_server: object
) -> None:
    monkeypatch.chdir(tmp_path)
    for uri in ("a.json", "new/folder/a.json", str(tmp_path / "a.json"), "s3://bucket/new/a.json"):
        check_output("--output", uri)
        write_output(uri, "µ")
        assert read_uri(uri).decode() == "µ"
    check_output("--output", None)
    write_output(None, "")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "new", "s3"}


@pytest.mark.parametrize(
    "uri", ["", ".", "new/", "/", "/dev/null", "s3://bucket", "s3://bucket/a/", "gs://b/a"]
)
def test_an_output_must_be_a_file(uri: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--output .*name"):
        check_output("--output", uri)


def test_an_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="file is not a writable folder"):
        check_output("--output", str(tmp_path / "file/new/a.json"))


CORPUS = ("--corpus", "nowhere")
TRUTH = ("--ground-truth", "nowhere")


@pytest.mark.parametrize(
    ("job", "flags"),
    [
        ("benchmark", ()),
        ("studies/benchmark_refinement", ("--coco", "nowhere")),
        ("choose_bias", CORPUS),
        ("evaluate", ("--store", "nowhere", *TRUTH)),
        ("studies/evaluate_superpixels", ("--coco", "nowhere")),
        ("evaluate_encoder", (*CORPUS, *TRUTH)),
        ("sweep", (*CORPUS, *TRUTH)),
        ("sweep --plot", (*CORPUS, *TRUTH, "--grid", "promerge.tau-b=0.1")),
    ],
)
def test_jobs_check_their_output_before_the_work(
    job: str,
    flags: tuple[str, ...],
    tmp_path: Path,
    run_here: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    name, _, flag = job.partition(" ")
    folder = tmp_path / ("folder.svg" if flag else "folder.json")
    folder.mkdir()
    ended = run_here(name, *flags, flag or "--output", str(folder))
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line == f"error: {flag or '--output'} '{folder}' is a folder or a device: name a file"
