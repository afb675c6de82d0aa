"""The files at the top say what is true."""

import importlib
import re
import subprocess
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs.cli.console import parse_arguments

_ROOT = Path(__file__).parents[1]
_README = (_ROOT / "README.md").read_text()
_PAGES = _README + "".join(path.read_text() for path in sorted((_ROOT / "docs").glob("*.md")))


def test_ray_accepts_the_cluster() -> None:
    validate_config(prepare_config(yaml.safe_load((_ROOT / "cluster.yaml").read_text())))


def test_every_flag_in_the_pages_exists(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = set(re.findall(r"jobs/(\w+)\.py", _PAGES))
    assert "label_folder" in jobs
    for job in sorted(jobs):
        main = importlib.import_module(f"jobs.{job}").main
        (arguments_type,) = (kind for name, kind in get_type_hints(main).items() if name != "return")
        with pytest.raises(SystemExit):
            parse_arguments(arguments_type, ["--help"])
        said = capsys.readouterr().out
        uses = re.findall(rf"jobs/{job}\.py((?:[^\n]|\\\n)*)", _PAGES)
        flags = {flag for use in uses for flag in re.findall(r"--[a-z][\w.-]*", use)}
        assert {flag for flag in flags if flag not in said} == set(), job


@pytest.mark.slow
@pytest.mark.parametrize(
    "job", sorted(path.stem for path in (_ROOT / "jobs").glob("*.py") if path.read_text().startswith("#!"))
)
def test_every_job_runs_by_its_file(job: str) -> None:
    command = [str(_ROOT / "jobs" / f"{job}.py"), "--help"]
    said = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True).stdout
    assert said.startswith("usage: ")
    assert "--help" in said


@pytest.mark.parametrize("page", ["README.md", "docs/measurements.md", "docs/detector.md"])
def test_what_a_page_links_to_is_there(page: str) -> None:
    path = _ROOT / page
    targets = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", path.read_text())
    assert page != "README.md" or ("docs/labels.jpg", "") in targets
    for name, heading in targets:
        target = path.parent / name if name else path
        assert target.is_file()
        assert target.stat().st_size < 500_000
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in [text.lower().replace(" ", "-") for text in headings]


def test_ci_runs_the_readmes_test_command() -> None:
    script = (_ROOT / ".ci/run").read_text()
    (commands,) = [
        block for block in re.findall(r"```bash\n(.*?)```", _README, re.DOTALL) if "pytest" in block
    ]
    for line in commands.strip().splitlines():
        assert line.removeprefix("pip install ") in script
