"""Mistakes on the command line, told in one line with the flag's name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from engine.errors import OutOfBoundsError


@dataclass(frozen=True)
class Flag:
    """A flag such as `--promerge.tau-b`, and the dataclass field that it sets."""

    name: str
    owner: str
    field: str
    hint: Any


def flags_of(arguments_type: type, prefix: str = "", omit_prefixes: bool = False) -> Iterator[Flag]:
    """The flags of a tree of dataclasses, named as tyro names them."""
    hints = get_type_hints(arguments_type, include_extras=True)
    for field in fields(arguments_type):
        hint = hints[field.name]
        settings = getattr(hint, "__metadata__", ())
        named = [item.name for item in settings if isinstance(getattr(item, "name", None), str)]
        name = named[0] if named else field.name.replace("_", "-")
        path = name if omit_prefixes else ".".join(part for part in (prefix, name) if part)
        kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if is_dataclass(kind) and isinstance(kind, type):
            yield from flags_of(kind, path, omit_prefixes or tyro.conf.OmitArgPrefixes in settings)
        else:
            yield Flag(f"--{path}", arguments_type.__name__, field.name, hint)


def name_flag(error: OutOfBoundsError, arguments_type: type, args: Sequence[str]) -> str:
    """The error's message with the flag in place of the field's name.

    A configuration may stand in several places of the tree: the flags given in `args` are then meant. The
    field's name stays if no flag is.
    """
    found = [
        flag.name
        for flag in flags_of(arguments_type)
        if (flag.owner, flag.field) == (error.owner, error.field)
    ]
    given = [name for name in found if _values_of(name, args) is not None]
    named = given or (found if len(found) == 1 else [])
    message = str(error)
    return " or ".join(named) + message.removeprefix(error.field) if named else message


def tell_panel(panel: str, arguments_type: type, args: Sequence[str]) -> str:
    """The message of tyro's error panel in one line, without frame and hints, and numbers in our words."""
    message, similar = _read_panel(panel)
    if parsed := re.match(r"Error parsing (--[\w.-]+):", message):
        name = parsed.group(1)
        expected = next(
            (expected_of(flag.hint) for flag in flags_of(arguments_type) if flag.name == name), None
        )
        values = _values_of(name, args)
        if expected is not None and values is not None:
            message = f"{name} takes {expected}, got {' '.join(values)!r}"
    elif missing := re.match(r"Missing value for argument '(--[\w.-]+)'", message):
        message = f"{missing.group(1)} takes a value, and none is given"
    elif choice := re.match(r"invalid choice (.*) for argument '(--.*)'\. Expected one of \((.*)\)", message):
        got, name, choices = choice.groups()
        message = f"{name} is one of {choices.rstrip(',').replace(chr(39), '')}, got {got}"
    elif similar and message.startswith("Unrecognized"):
        message += f"; did you mean {' or '.join(similar)}?"
    elif (word := re.match(r"Unrecognized options: ([^-]\S*)", message)) and not similar:
        message = f"{word.group(1)!r} follows no flag: a value needs one, such as --output"
    elif message.startswith("Missing from"):
        message = f"missing: {', '.join(_required_flags(message))}"
    return f"{message} (--help lists all flags)"


def _required_flags(message: str) -> list[str]:
    """The flags that tyro's message about missing ones describes.

    >>> _required_flags("Missing from x: --store STR The labels. (required) --output STR A file. (required)")
    ['--store', '--output']
    """
    described = message.partition(": ")[2].split("(required)")
    return [text.split()[0].partition("/")[0] for text in described if text.strip().startswith("--")]


def expected_of(hint: Any) -> str | None:
    """What a flag of numbers takes, in words; None for a flag that takes something else.

    >>> expected_of(int | None), expected_of(tuple[float, ...]), expected_of(str)
    ('a whole number', 'numbers', None)
    """
    leaves = set(_leaves(hint))
    if not leaves or not leaves <= {int, float}:
        return None
    number = "whole number" if leaves == {int} else "number"
    return f"{number}s" if _holds_tuple(hint) else f"a {number}"


def _leaves(hint: Any) -> Iterator[Any]:
    """The types in a hint, without None and without annotations."""
    if get_origin(hint) is Annotated:
        yield from _leaves(get_args(hint)[0])
    elif parts := get_args(hint):
        for part in parts:
            yield from _leaves(part)
    elif hint not in (NoneType, Ellipsis):
        yield hint


def _holds_tuple(hint: Any) -> bool:
    origin = get_origin(hint)
    parts = get_args(hint)[:1] if origin is Annotated else get_args(hint)
    return origin is tuple or any(map(_holds_tuple, parts))


def _values_of(name: str, args: Sequence[str]) -> list[str] | None:
    """What follows the last mention of a flag, up to the next flag; None if the flag is not given.

    >>> _values_of("--tau-b", ["--tau_b", "-1", "2", "--limit", "3"])
    ['-1', '2']
    """
    values: list[str] | None = None
    is_ours = False
    for arg in args:
        if arg.startswith("--"):
            flag, equals, value = arg.partition("=")
            is_ours = flag.replace("_", "-") == name.replace("_", "-")
            values = [value] * bool(equals) if is_ours else values
        elif is_ours and values is not None:
            values.append(arg)
    return values


def _read_panel(panel: str) -> tuple[str, list[str]]:
    """A panel's message, and the flags that its hints name.

    A panel is a title, the message, hints and where the help is, with rules between them. Where the terminal
    cannot show frames, the title has a rule below it; elsewhere it is part of the frame.
    """
    lines = [line.strip("│ ") for line in panel.splitlines() if not line.startswith(("╭", "╰"))]
    text = " ".join("\n" if re.fullmatch("[─-]{5,}", line) else line for line in lines)
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n")]
    message, *hints = paragraphs if "╭" in panel else paragraphs[1:]
    return message, list(dict.fromkeys(re.findall(r"(?<!\S)--[\w.-]+", " ".join(hints[:-1]))))
