"""The short help shows the flags that matter and hides the others."""

from __future__ import annotations

import re
from importlib import import_module

import pytest

from jobs.cli.command import SUBCOMMANDS
from jobs.cli.console import parse_arguments
from jobs.cli.messages import flags_of
from jobs.cli.short_help import shorten


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_the_short_help_shows_the_common_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    subcommand = SUBCOMMANDS[name]
    arguments_type = getattr(import_module(subcommand.module), subcommand.arguments)
    names = [flag.name for flag in flags_of(arguments_type)]
    expected = set(subcommand.common or [flag for flag in names if "." not in flag])
    assert expected <= set(names)
    with pytest.raises(SystemExit):
        parse_arguments(shorten(arguments_type, subcommand.common), ["--help"])
    said = capsys.readouterr().out
    assert expected <= set(re.findall(r"--[a-z][\w.-]*", said))
    assert "{None}" not in said
    assert not [flag for flag in names if flag not in expected and re.search(rf"│ {flag} ", said)]
    assert ("--help-all" in said) == (len(expected) < len(names))
