"""Start and end of every job: encodings, and one line for each mistake on the command line."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from engine.bounds import Bounded, Cosine, Count, Positive
from engine.errors import ConfigurationError, UsageError
from jobs.cli.console import parse_arguments

_PRINT_A_NAME = """
from dataclasses import dataclass
from jobs.cli.console import run_job

@dataclass
class Arguments:
    name: str

run_job(Arguments, lambda arguments: print(arguments.name))
"""


@dataclass(frozen=True, kw_only=True)
class Method(Bounded):
    tau_b: Cosine = 0.2
    ranges_px: tuple[tuple[Positive, Positive], ...] = ((1, 2),)
    filter: Literal["ioa", "cascade"] = "cascade"


@dataclass(frozen=True, kw_only=True)
class Training(Bounded):
    steps: Count = 10
    seed: Annotated[Count, tyro.conf.arg(name="network-seed")] = 1
    method: Method = field(default_factory=Method)


@dataclass(frozen=True, kw_only=True)
class Arguments(Bounded):
    promerge: Method = field(default_factory=Method)
    training: Annotated[Training, tyro.conf.arg(name="")] = field(default_factory=Training)
    later: Training = field(default_factory=Training)
    flat: Annotated[Method, tyro.conf.arg(name=""), tyro.conf.OmitArgPrefixes] = field(default_factory=Method)
    limit: Count | None = None


def test_characters_that_the_output_lacks_are_escaped() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", _PRINT_A_NAME, "--name", "é☃"]
    said = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    assert said == b"\xe9\\u2603\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--promerge.tau-b 3", "--promerge.tau-b is a cosine, -1 to 1, got 3.0"),
        ("--promerge.tau_b=3", "--promerge.tau-b is a cosine, -1 to 1, got 3.0"),
        ("--method.tau-b -2", "--method.tau-b is a cosine, -1 to 1, got -2.0"),
        ("--tau-b -2", "--tau-b is a cosine, -1 to 1, got -2.0"),
        ("--limit 0", "--limit is a whole number >= 1, got 0"),
        ("--steps 0", "--steps is a whole number >= 1, got 0"),
        ("--later.steps 0", "--later.steps is a whole number >= 1, got 0"),
        ("--later.network-seed 0", "--later.network-seed is a whole number >= 1, got 0"),
        ("--steps 3 --later.steps 0", "--steps or --later.steps is a whole number >= 1, got 0"),
    ],
)
def test_a_number_out_of_bounds_is_told_with_its_flag(flags: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse_arguments(Arguments, flags.split())
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--limit three", "--limit takes a whole number, got 'three'"),
        ("--limit=3.5", "--limit takes a whole number, got '3.5'"),
        ("--promerge.tau-b x --limit 3", "--promerge.tau-b takes a number, got 'x'"),
        ("--ranges-px 1 2 3", "--ranges-px takes numbers, got '1 2 3'"),
        ("--limit", "--limit takes a value, and none is given"),
        ("--filter x", "--filter is one of ioa, cascade, got 'x'"),
        ("--promerge.tau-q 1", "Unrecognized options: --promerge.tau-q, 1; did you mean --promerge.tau-b?"),
    ],
)
def test_a_flag_that_cannot_be_read_is_told_in_one_line(flags: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_arguments(Arguments, flags.split())
    assert str(raised.value) == f"{message} (--help lists all flags)"


def test_a_bound_that_no_flag_broke_keeps_the_name_of_its_field() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Outer:
        one: Method = field(default_factory=Method)
        two: Method = field(default_factory=Method)

        def __post_init__(self) -> None:
            Method(tau_b=2)

    with pytest.raises(ConfigurationError, match=r"^tau_b is a cosine"):
        parse_arguments(Outer, [])
