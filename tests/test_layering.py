"""Dependencies run jobs -> actors -> engine, never back."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_MAX_INIT_LINES = 100
_HEAVY = {"ray", "torch", "torchvision", "timm", "scipy", "numba", "pandas", "sklearn", "skimage"}
# Libraries that --help still loads, since a configuration shares its module with the code that reads it.
_STILL_LOADED = {
    "evaluate": {"scipy"},
    "evaluate_encoder": {"scipy"},
    "sweep": {"scipy"},
    "export": {"scipy", "numba"},
    "train_solo": {"torch", "scipy", "numba", "skimage"},
    "self_train": {"torch", "scipy", "numba", "skimage"},
    "pretrain_encoder": {"torch", "torchvision", "timm", "scipy", "numba", "skimage"},
}
_FORBIDDEN = {
    "engine": {"ray", "actors", "jobs", "maskmill", "tests"},
    "actors": {"jobs", "maskmill", "tests"},
    "jobs": {"maskmill", "tests"},
}


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


def _loaded(module: str) -> set[str]:
    """Top-level packages in memory once `module` is imported."""
    ask = f"import {module}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    said = subprocess.run([sys.executable, "-c", ask], cwd=_ROOT, capture_output=True, text=True, check=True)
    return set(said.stdout.split())


@pytest.mark.parametrize(
    "job", sorted(path.stem for path in (_ROOT / "jobs").glob("*.py") if path.read_text().startswith("#!"))
)
def test_help_needs_no_heavy_library(job: str) -> None:
    """So that --help and mistakes answer at once."""
    assert _loaded(f"jobs.{job}") & _HEAVY <= _STILL_LOADED.get(job, set())


def test_the_import_and_the_command_are_light() -> None:
    """`import maskmill` loads libraries on first use; the list of subcommands does not load tyro either."""
    assert _loaded("maskmill") & {*_HEAVY, "numpy", "PIL", "tyro"} == set()
    assert _loaded("jobs.cli.command") & {*_HEAVY, "tyro"} == set()


def test_instances_need_numpy_alone() -> None:
    packages = {"numpy", "scipy", "torch", "pycocotools", "PIL", "pyarrow", "numba", "ray"}
    assert _loaded("engine.masks.instances") & packages == {"numpy"}


def test_packages_load_little() -> None:
    """An `__init__` holds a docstring, a few names and at most one short function, not a program."""
    large = {
        str(path.relative_to(_ROOT)): lines
        for package in ("engine", "actors", "jobs")
        for path in (_ROOT / package).rglob("__init__.py")
        if (lines := len(path.read_text().splitlines())) > _MAX_INIT_LINES
    }
    assert large == {}
