"""Dependencies run jobs -> actors -> engine, never back."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_FORBIDDEN = {"engine": {"ray", "actors", "jobs", "tests"}, "actors": {"jobs", "tests"}, "jobs": {"tests"}}


def _imports(source: str) -> set[str]:
    """Top-level packages that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("package", sorted(_FORBIDDEN))
def test_no_import_runs_against_the_direction(package: str) -> None:
    modules = sorted((_ROOT / package).rglob("*.py"))
    assert modules
    offences = {
        str(module.relative_to(_ROOT)): wrong
        for module in modules
        if (wrong := _imports(module.read_text()) & _FORBIDDEN[package])
    }
    assert offences == {}


def test_an_import_in_a_function_is_seen() -> None:
    assert _imports("def f():\n    import ray.data\n    from jobs.cli.console import x") == {"ray", "jobs"}


def test_ray_starts_only_in_jobs() -> None:
    starters = [
        str(path.relative_to(_ROOT))
        for package in ("engine", "actors")
        for path in (_ROOT / package).rglob("*.py")
        if "ray.init" in path.read_text()
    ]
    assert starters == []


@pytest.mark.parametrize("job", ["label_folder", "label_coco", "label_sa1b", "label_hrsid"])
def test_the_flags_of_label_jobs_need_no_heavy_library(job: str) -> None:
    """So that --help and mistakes answer at once."""
    ask = f"import jobs.{job}, sys; print({{'ray', 'torch', 'timm', 'scipy', 'numba'}} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", ask], cwd=_ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
