"""Layout of charts, which the page draws as SVG. Lengths are in the SVG's user units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.report.histogram import Histogram

WIDTH, HEIGHT = 360.0, 150.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 48.0, 8.0, 10.0, 24.0
_X_TICKS = 4


@dataclass(frozen=True, kw_only=True)
class Tick:
    """An axis label and its position along the axis."""

    position: float
    label: str


@dataclass(frozen=True, kw_only=True)
class BarMark:
    """A bar with its range of values and its count as text and number."""

    x: float
    y: float
    width: float
    height: float
    range: str
    count: int


@dataclass(frozen=True, kw_only=True)
class BarChart:
    """A histogram; `summary` describes it in words."""

    title: str
    summary: str
    bars: tuple[BarMark, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One quantity over the rounds: points (x, y) in SVG units, each with its value as text."""

    name: str
    points: tuple[tuple[float, float, str], ...]

    @property
    def path(self) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in self.points)


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """Quantities over the rounds; `summary` describes them in words."""

    title: str
    summary: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def bar_chart(
    title: str, histogram: Histogram, counted: str, *, unit: float = 1.0, is_whole: bool = False
) -> BarChart:
    """A chart of a histogram over `counted` (a plural noun); values are shown in units of `unit`.

    `is_whole` marks integer values, so that a bar covers several integers rather than an interval.
    """
    bars = histogram.bars()
    highest = max((bar.count for bar in bars), default=1)
    step = (WIDTH - _LEFT - _RIGHT) / max(len(bars), 1)
    marks = tuple(
        BarMark(
            x=_LEFT + i * step + 0.5,
            y=_height(bar.count, highest),
            width=max(step - 1, 1),
            height=HEIGHT - _BOTTOM - _height(bar.count, highest),
            range=_range_text(bar.start / unit, bar.end / unit, is_whole),
            count=bar.count,
        )
        for i, bar in enumerate(bars)
    )
    stride = max(1, -(-len(bars) // _X_TICKS))
    ticks = tuple(
        Tick(
            position=_LEFT + (i + (0.5 if is_whole else 0)) * step,
            label=_number(math.ceil(bar.start) if is_whole else bar.start / unit),
        )
        for i, bar in enumerate(bars)
        if i % stride == 0
    )
    middle = math.floor(histogram.median()) if bars and is_whole else histogram.median() / unit
    summary = f"{histogram.total:,} {counted}, median {_number(middle)}" if bars else f"no {counted}"
    return BarChart(
        title=title, summary=summary, bars=marks, x_ticks=ticks, y_ticks=_count_ticks(highest) if bars else ()
    )


def line_chart(
    title: str,
    rounds: Sequence[int],
    series: Sequence[tuple[str, Sequence[float | None]]],
    *,
    is_whole: bool = False,
) -> LineChart:
    """A chart of named series with one value per round; None leaves a round out.

    `is_whole` marks integer values.
    """
    values = [value for _, row in series for value in row if value is not None]
    top = _round_up(max([*values, 0.01]))
    step = (WIDTH - _LEFT - _RIGHT) / max(len(rounds), 1)
    centres = [_LEFT + (i + 0.5) * step for i in range(len(rounds))]
    lines = tuple(
        Line(
            name=name,
            points=tuple(
                (x, _height(value, top), f"{value:,.0f}" if is_whole else f"{value:.3f}")
                for x, value in zip(centres, row, strict=True)
                if value is not None
            ),
        )
        for name, row in series
    )
    summary = "; ".join(
        f"{line.name}: {', '.join(text for _, _, text in line.points)}" for line in lines if line.points
    )
    return LineChart(
        title=title,
        summary=summary,
        lines=lines,
        x_ticks=tuple(
            Tick(position=x, label=f"round {number}") for x, number in zip(centres, rounds, strict=True)
        ),
        y_ticks=tuple(
            Tick(position=_height(share * top, top), label=_number(share * top)) for share in (0, 0.5, 1)
        ),
    )


def _height(value: float, highest: float) -> float:
    """The y position of a value: 0 is at the axis, `highest` at the top."""
    return HEIGHT - _BOTTOM - (HEIGHT - _BOTTOM - _TOP) * value / highest


def _round_up(value: float) -> float:
    """The smallest of 1, 2, 3, 4, 6, 8 times a power of ten that is at least `value`."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 3, 4, 6, 8, 10) if step * power >= value)


def _count_ticks(highest: int) -> tuple[Tick, ...]:
    return tuple(Tick(position=_height(count, highest), label=f"{count:,}") for count in (0, highest))


def _range_text(start: float, end: float, is_whole: bool) -> str:
    if not is_whole:
        return f"{_number(start)} to {_number(end)}"
    first, last = math.ceil(start), math.floor(end)
    return str(first) if first == last else f"{first} to {last}"


def _number(value: float) -> str:
    """A number with two or three significant digits, without an exponent."""
    digits = max(0, 1 - math.floor(math.log10(abs(value)))) if abs(value) > 1e-9 else 0
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
