"""maskmill: label images without humans, from Python or with the command `maskmill`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

_ROOT = Path(__file__).resolve().parent


def _find_own_packages() -> None:
    """Make `engine`, `actors` and `jobs` the packages beside this file.

    A working folder or PYTHONPATH with packages of these names comes before the installed ones. Raises
    ImportError if another package of such a name is already loaded.
    """
    for name in ("engine", "actors", "jobs"):
        spec = find_spec(name)
        if spec is not None and spec.origin and Path(spec.origin).resolve() == _ROOT / name / "__init__.py":
            continue
        if name in sys.modules:
            raise ImportError(
                f"maskmill has a package {name!r}, and {spec.origin if spec else 'another one'} of the same "
                "name is loaded: import maskmill first, or in another process"
            )
        sys.path.insert(0, str(_ROOT))


_find_own_packages()


def run_command() -> None:
    """Run the command `maskmill` with the arguments of this process, and exit."""
    from jobs.cli.command import run

    run(sys.argv[1:])


if __name__ == "__main__":
    run_command()
