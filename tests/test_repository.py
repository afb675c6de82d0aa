"""The files at the top say what is true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

_ROOT = Path(__file__).parents[1]
_README = (_ROOT / "README.md").read_text()


def test_ray_accepts_the_cluster() -> None:
    validate_config(prepare_config(yaml.safe_load((_ROOT / "cluster.yaml").read_text())))


def test_every_flag_in_the_readme_exists() -> None:
    jobs = set(re.findall(r"jobs/(\w+)\.py", _README))
    assert "label_folder" in jobs
    for job in sorted(jobs):
        command = [sys.executable, str(_ROOT / "jobs" / f"{job}.py"), "--help"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        uses = re.findall(rf"jobs/{job}\.py((?:[^\n]|\\\n)*)", _README)
        flags = {flag for use in uses for flag in re.findall(r"--[a-z][\w.-]*", use)}
        assert {flag for flag in flags if flag not in said} == set(), job


@pytest.mark.parametrize("name", ["docs/labels.jpg"])
def test_pictures_in_the_readme_are_there(name: str) -> None:
    assert name in _README
    assert (_ROOT / name).stat().st_size < 500_000


def test_ci_runs_the_readmes_test_command() -> None:
    script = (_ROOT / ".ci/run").read_text()
    (commands,) = [
        block for block in re.findall(r"```bash\n(.*?)```", _README, re.DOTALL) if "pytest" in block
    ]
    for line in commands.strip().splitlines():
        assert line.removeprefix("pip install ") in script
