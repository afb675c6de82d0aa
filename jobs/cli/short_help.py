"""A help that shows the flags most people need, for arguments with a hundred of them."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import MISSING, Field, field, fields, is_dataclass, make_dataclass
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from jobs.cli.messages import flags_of


def shorten(arguments_type: type, common: Collection[str]) -> type:
    """`arguments_type` for its help alone: flags that are not among `common` are hidden.

    If `common` is empty, flags of nested settings, which have a dot, are hidden.
    """
    names = [flag.name for flag in flags_of(arguments_type)]
    shown = set(common or [name for name in names if "." not in name])
    short = _shorten(arguments_type, "", shown)
    if len(shown) < len(names):
        short.__doc__ = f"{inspect.getdoc(arguments_type)}\n\n--help-all shows all {len(names)} flags."
    return short


def _shorten(kind: type, prefix: str, shown: Collection[str], omits_prefixes: bool = False) -> type:
    """A subclass of a dataclass whose fields are annotated for the help; its values are not checked.

    Flags are named as in `flags_of`.
    """
    hints = get_type_hints(kind, include_extras=True)
    changed: list[tuple[str, Any, Any]] = []
    for item in fields(kind):
        hint, settings = hints[item.name], getattr(hints[item.name], "__metadata__", ())
        plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        named = [setting.name for setting in settings if isinstance(getattr(setting, "name", None), str)]
        name = named[0] if named else item.name.replace("_", "-")
        path = name if omits_prefixes else ".".join(part for part in (prefix, name) if part)
        if is_dataclass(plain) and isinstance(plain, type):
            inner = _shorten(plain, path, shown, omits_prefixes or tyro.conf.OmitArgPrefixes in settings)
            hint = Annotated[(inner, *settings)] if settings else inner
            required = any(f.default is MISSING and f.default_factory is MISSING for f in fields(plain))
            changed.append((item.name, hint, field() if required else field(default_factory=inner)))
        else:
            changed.append((item.name, _annotate(hint, plain, f"--{path}" in shown), _same_default(item)))
    namespace = {"__post_init__": lambda self: None}
    short = make_dataclass(
        kind.__name__, changed, bases=(kind,), frozen=True, kw_only=True, namespace=namespace
    )
    short.__doc__ = kind.__doc__
    return short


def _annotate(hint: Any, plain: Any, is_shown: bool) -> Any:
    """The hint of a hidden flag, or of one whose help says what None means in its description."""
    if not is_shown:
        return Annotated[hint, tyro.conf.Suppress]
    kinds = [kind for kind in get_args(plain) if kind is not NoneType]
    if NoneType not in get_args(plain) or len(kinds) != 1:
        return hint
    kind = get_args(kinds[0])[0] if get_origin(kinds[0]) is Annotated else kinds[0]
    return Annotated[hint, tyro.conf.arg(metavar=kind.__name__.upper(), help_behavior_hint="")]


def _same_default(item: Field[Any]) -> Any:
    """A field with the default of `item`."""
    if item.default_factory is not MISSING:
        return field(default_factory=item.default_factory)
    return field() if item.default is MISSING else field(default=item.default)
