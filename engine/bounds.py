"""Bounds of configuration fields, declared in the field's type and checked in one place.

A configuration derives from `Bounded` and annotates its fields:

>>> @dataclass(frozen=True, kw_only=True)
... class Example(Bounded):
...     overlap: Annotated[float, Bounds(0, 0.9, "a share of a tile's side")] = 0.25
...     steps: Count | None = None
>>> Example(overlap=1.5)
Traceback (most recent call last):
engine.errors.OutOfBoundsError: overlap is a share of a tile's side, 0 to 0.9, got 1.5
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from engine.errors import OutOfBoundsError


@dataclass(frozen=True)
class Bounds:
    """An interval of numbers, and the noun phrase by which errors name what the number is.

    Ends belong to the interval unless `above` or `below` excludes them. NaN is outside every interval, and
    infinity is outside one without an upper end.
    """

    low: float = -math.inf
    high: float = math.inf
    what: str = "a number"
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` lies in the interval."""
        if not math.isfinite(value):
            return False
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        return over and under

    def __str__(self) -> str:
        if self.high == math.inf:
            end = "" if self.low == -math.inf else f" {'>' if self.above else '>='} {self.low:g}"
            return f"{self.what}{end}" if end else f"{self.what}, finite"
        if not self.above and not self.below:
            return f"{self.what}, {self.low:g} to {self.high:g}"
        low = f"{'>' if self.above else '>='} {self.low:g}"
        return f"{self.what} {low} and {'<' if self.below else '<='} {self.high:g}"


Share = Annotated[float, Bounds(0, 1, "a share")]
"""From nothing (0) to all (1)."""
Cosine = Annotated[float, Bounds(-1, 1, "a cosine")]
Positive = Annotated[float, Bounds(0, what="a number", above=True)]
NotNegative = Annotated[float, Bounds(0, what="a number")]
Count = Annotated[int, Bounds(1, what="a whole number")]
"""At least one."""
CountOrZero = Annotated[int, Bounds(0, what="a whole number")]


class Bounded:
    """Base of a dataclass whose fields are checked against the `Bounds` in their types when it is made.

    Bounds hold for a number, for each number of a tuple, and not for None. A subclass with checks of its own
    extends `__post_init__`. Raises OutOfBoundsError, which names the field.
    """

    def __post_init__(self) -> None:
        for name, bounds in _bounds_of(type(self)):  # type: ignore[arg-type]
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else () if value is None else (value,)
            for number in _flat(values):
                if not bounds.holds(number):
                    raise OutOfBoundsError(f"{name} is {bounds}, got {value}", type(self).__name__, name)


@cache
def _bounds_of(owner: type) -> tuple[tuple[str, Bounds], ...]:
    hints = get_type_hints(owner, include_extras=True)
    return tuple(
        (field.name, bounds)
        for field in fields(owner)  # type: ignore[arg-type]
        for bounds in _bounds_in(hints[field.name])
    )


def _bounds_in(hint: Any) -> Iterator[Bounds]:
    if get_origin(hint) is Annotated:
        yield from (item for item in hint.__metadata__ if isinstance(item, Bounds))
    for part in get_args(hint):
        if not isinstance(part, Bounds | str):
            yield from _bounds_in(part)


def _flat(values: tuple[Any, ...]) -> Iterator[float]:
    for value in values:
        if isinstance(value, tuple):
            yield from _flat(value)
        elif isinstance(value, int | float):
            yield value
