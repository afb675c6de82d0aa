"""What the documents say is true."""

import importlib
import os
import re
import subprocess
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs.cli.command import SUBCOMMANDS
from jobs.cli.console import parse_arguments
from jobs.cli.messages import flags_of

_ROOT = Path(__file__).parents[1]
_README = (_ROOT / "README.md").read_text()
_DOCS = sorted((_ROOT / "docs").glob("*.md"))
_PAGES = _README + "".join(path.read_text() for path in _DOCS)
_ARCHITECTURE = (_ROOT / "docs/architecture.md").read_text()
_JOBS = sorted(
    str(path.relative_to(_ROOT))
    for path in [*(_ROOT / "jobs").glob("*.py"), *(_ROOT / "jobs/studies").glob("*.py")]
    if path.read_text().startswith("#!")
)


def _resolve(dotted: str) -> object:
    """The module, or the attribute of a module or class, with this name."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(dotted)


def test_ray_accepts_the_cluster() -> None:
    validate_config(prepare_config(yaml.safe_load((_ROOT / "cluster.yaml").read_text())))


def test_every_job_in_the_pages_exists() -> None:
    named = set(re.findall(r"\bjobs/[\w/]+\.py", _PAGES))
    assert {"jobs/label_folder.py", "jobs/studies/compare_rounds.py"} <= named
    assert named <= set(_JOBS)


@pytest.mark.parametrize("job", _JOBS)
def test_every_flag_of_a_job_in_the_pages_exists(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module(job.removesuffix(".py").replace("/", ".")).main
    (arguments_type,) = (kind for name, kind in get_type_hints(main).items() if name != "return")
    with pytest.raises(SystemExit):
        parse_arguments(arguments_type, ["--help"])
    said = set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))
    uses = re.findall(rf"{re.escape(job)}((?:[^\n]|\\\n)*)", _PAGES)
    flags = {flag for use in uses for flag in re.findall(r"--[a-z][\w.-]*", use)}
    assert flags <= said


def test_every_subcommand_in_the_pages_exists() -> None:
    code = "\n".join(re.findall(r"```.*?```|`[^`]+`", _PAGES, re.DOTALL))
    named = set(re.findall(r"\bmaskmill ([a-z][a-z-]*)", code))
    assert {"label", "report"} <= named <= set(SUBCOMMANDS)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_flag_of_a_subcommand_in_the_pages_exists(name: str) -> None:
    subcommand = SUBCOMMANDS[name]
    arguments_type = getattr(importlib.import_module(subcommand.module), subcommand.arguments)
    known = {flag.name for flag in flags_of(arguments_type)}
    known |= {"--encoder", "--weights", "--help", "--help-all"}
    uses = re.findall(rf"\bmaskmill {name}(?=\s)((?:[^\n`]|\\\n)*)", _PAGES)
    assert {flag for use in uses for flag in re.findall(r"--[a-z][\w.-]*", use)} <= known
    assert subcommand.first in known


@pytest.mark.slow
@pytest.mark.parametrize("job", _JOBS)
def test_every_job_runs_by_its_file(job: str) -> None:
    # The repository is on the path where it is installed, and in a job that Ray runs.
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    command = [str(_ROOT / job), "--help"]
    said = subprocess.run(
        command, cwd="/", env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith("usage: ")
    assert "Exit codes: 0 done" in said


@pytest.mark.parametrize("page", [_ROOT / "README.md", *_DOCS], ids=lambda path: path.name)
def test_every_link_of_a_page_has_a_target(page: Path) -> None:
    for name, heading in re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        target = page.parent / name if name else page
        assert target.is_file()
        assert target.stat().st_size < 500_000
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in [text.lower().replace(" ", "-") for text in headings]


def test_the_readme_links_every_page() -> None:
    linked = set(re.findall(r"\]\((docs/[\w.]+)", _README))
    assert linked >= {"docs/labels.jpg", *(f"docs/{path.name}" for path in _DOCS)}


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([a-z]\w*(?:/[\w.]*)+)`", _ARCHITECTURE))))
def test_a_path_of_the_architecture_exists(path: str) -> None:
    assert (_ROOT / path).exists()


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`((?:engine|actors|jobs)(?:\.\w+)+)`", _ARCHITECTURE)))
)
def test_a_name_of_the_architecture_exists(name: str) -> None:
    _resolve(name)


def test_every_package_is_in_the_architecture() -> None:
    packages = {
        f"{path.parent.relative_to(_ROOT)}/"
        for top in ("engine", "actors", "jobs")
        for path in (_ROOT / top).glob("**/__init__.py")
        if path.parent.name != "engine"
    }
    assert {package for package in packages if f"| `{package}` |" not in _ARCHITECTURE} == set()


def test_a_section_of_the_methods_that_code_cites_exists() -> None:
    headings = re.findall(r"^## (\d) |^(\d)\. ", (_ROOT / "docs/methods.md").read_text(), re.MULTILINE)
    sections, current = set(), ""
    for section, step in headings:
        current = section or current
        sections.add(current if section else f"{current}.{step}")
    cited = {
        number
        for top in ("engine", "actors", "jobs")
        for path in (_ROOT / top).rglob("*.py")
        for numbers in re.findall(r"docs/methods\.md, ((?:\d(?:\.\d)?(?:, | and |-)?)+)", path.read_text())
        for number in re.findall(r"\d(?:\.\d)?", numbers)
    }
    assert {"1", "2.7", "6.5"} <= sections
    assert cited <= sections


def test_ci_runs_the_readmes_test_command() -> None:
    script = (_ROOT / ".ci/run").read_text()
    (commands,) = [
        block for block in re.findall(r"```bash\n(.*?)```", _README, re.DOTALL) if "pytest" in block
    ]
    for line in commands.strip().splitlines():
        assert line.removeprefix("pip install ") in script
