"""Hyper-parameter grids: every combination of values of some fields of a configuration."""

from __future__ import annotations

import itertools
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from engine.errors import ConfigurationError

Config = TypeVar("Config")
Value = int | float | str | bool | None


@dataclass(frozen=True, kw_only=True)
class GridAxis:
    """A field, named with dots (promerge.tau_b), and its values."""

    name: str
    values: tuple[Value, ...]


def parse_axis(text: str, config_type: type[Any]) -> GridAxis:
    """Parse an axis such as `promerge.tau-b=0.1,0.2`; its values get the type of the field.

    Raises ConfigurationError for an unknown field and for values of another type.
    """
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not values.strip():
        raise ConfigurationError(
            f"{text!r} is no axis of a grid: write FIELD=VALUE,VALUE, promerge.tau-b=0.1,0.2"
        )
    hint = _field_type(name, config_type)
    return GridAxis(name=name, values=tuple(_convert(part.strip(), hint, name) for part in values.split(",")))


def grid_points(axes: Sequence[GridAxis]) -> list[dict[str, Value]]:
    """Every combination of values, by the names of the axes; the last axis varies fastest.

    Without axes there is one point, {}. Raises ConfigurationError if a field has two axes.

    >>> grid_points([GridAxis(name="a", values=(1, 2)), GridAxis(name="b", values=("x",))])
    [{'a': 1, 'b': 'x'}, {'a': 2, 'b': 'x'}]
    """
    names = [axis.name for axis in axes]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"a field has two axes: {', '.join(names)}; give all its values in one")
    combinations = itertools.product(*(axis.values for axis in axes))
    return [dict(zip(names, values, strict=True)) for values in combinations]


def with_settings(config: Config, settings: Mapping[str, Value]) -> Config:
    """Replace fields of a configuration, named with dots, all at once.

    Raises ConfigurationError if the configuration does not allow the values.
    """
    direct: dict[str, Any] = {name: value for name, value in settings.items() if "." not in name}
    nested: dict[str, dict[str, Value]] = {}
    for name, value in settings.items():
        first, dot, rest = name.partition(".")
        if dot:
            nested.setdefault(first, {})[rest] = value
    inner = {name: with_settings(getattr(config, name), values) for name, values in nested.items()}
    changed: Config = replace(config, **direct, **inner)  # type: ignore[type-var]
    return changed


def _field_type(name: str, config_type: type[Any]) -> Any:
    """The type of a field of nested dataclasses, named with dots."""
    hint: Any = config_type
    for i, part in enumerate(name.split(".")):
        known = [field.name for field in fields(hint)] if is_dataclass(hint) else []
        if part not in known:
            above = ".".join(name.split(".")[:i])
            there = f"{above or 'the configuration'} has {', '.join(known) or 'no fields'}"
            raise ConfigurationError(f"there is no field {name!r} to sweep over: {there}")
        hint = get_type_hints(hint)[part]
    if is_dataclass(hint):
        inner = ", ".join(f"{name}.{field.name}" for field in fields(hint))
        raise ConfigurationError(f"{name!r} is a group of fields, sweep over one of them: {inner}")
    return hint


def _convert(text: str, hint: Any, name: str) -> Value:
    """Convert text to the type of a field."""
    if get_origin(hint) is Literal:
        if text in get_args(hint):
            return text
        raise ConfigurationError(f"{name} is one of {', '.join(map(str, get_args(hint)))}, got {text!r}")
    if get_origin(hint) in (Union, types.UnionType):
        if text.lower() == "none" and type(None) in get_args(hint):
            return None
        (hint,) = (arg for arg in get_args(hint) if arg is not type(None))
    if hint is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if hint not in (int, float, str):
        raise ConfigurationError(f"{name} cannot take the value {text!r} in a grid")
    try:
        value: Value = hint(text)
    except ValueError as error:
        raise ConfigurationError(f"{name} is of type {hint.__name__}, got {text!r}") from error
    return value
