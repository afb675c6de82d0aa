"""Line plots as SVG: panels side by side with the same horizontal axis, and one legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Okabe and Ito's palette without yellow, which is faint on white; dashes distinguish lines of one colour.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000")
_DASHES = ("", "6 3", "2 3")
_PANEL_WIDTH, _PANEL_HEIGHT, _MARGIN_LEFT, _MARGIN_TOP, _MARGIN_BOTTOM = 320, 240, 60, 30, 48
_LEGEND_LINE, _CHARACTER_WIDTH = 18, 7


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line: its name and, for each panel, a value or None at each position."""

    name: str
    values: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, kw_only=True)
class LinePlot:
    """Panels with `titles` over `positions`, which are numbers, to scale, or names, evenly spaced."""

    x_title: str
    positions: tuple[float, ...] | tuple[str, ...]
    titles: tuple[str, ...]
    series: tuple[Series, ...]


def draw_plot(plot: LinePlot) -> str:
    """Draw the plot as an SVG document; vertical axes start at 0."""
    legend_width = 50 + _CHARACTER_WIDTH * max((len(series.name) for series in plot.series), default=0)
    width = len(plot.titles) * (_PANEL_WIDTH + _MARGIN_LEFT) + legend_width
    height = max(
        _MARGIN_TOP + _PANEL_HEIGHT + _MARGIN_BOTTOM, _MARGIN_TOP + _LEGEND_LINE * (len(plot.series) + 1)
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for panel in range(len(plot.titles)):
        parts += _draw_panel(plot, panel)
    parts += _draw_legend(plot, len(plot.titles) * (_PANEL_WIDTH + _MARGIN_LEFT) + 16)
    return "\n".join([*parts, "</svg>\n"])


def _draw_panel(plot: LinePlot, panel: int) -> list[str]:
    left, bottom = panel * (_PANEL_WIDTH + _MARGIN_LEFT) + _MARGIN_LEFT, _MARGIN_TOP + _PANEL_HEIGHT
    known = [value for series in plot.series for value in series.values[panel] if value is not None]
    step, top = _nice_scale(max(known, default=0.0))
    middle = left + _PANEL_WIDTH / 2
    parts = [
        _text(middle, _MARGIN_TOP - 12, plot.titles[panel], "middle", weight="bold"),
        _text(middle, bottom + 38, plot.x_title, "middle"),
    ]
    for tick in range(round(top / step) + 1):
        y = bottom - _PANEL_HEIGHT * tick * step / top
        parts.append(f'<path d="M{left} {y:.1f}h{_PANEL_WIDTH}" stroke="#ddd"/>')
        parts.append(_text(left - 6, y + 4, f"{tick * step:g}", "end"))
    columns = [left + 12 + (_PANEL_WIDTH - 24) * share for share in _shares(plot.positions)]
    for x, position in zip(columns, plot.positions, strict=True):
        name = position if isinstance(position, str) else f"{position:g}"
        parts.append(_text(x, bottom + 18, name, "middle"))
    for number, series in enumerate(plot.series):
        points = sorted(
            (x, bottom - _PANEL_HEIGHT * value / top)
            for x, value in zip(columns, series.values[panel], strict=True)
            if value is not None
        )
        parts += _draw_line(points, number)
    return parts


def _draw_legend(plot: LinePlot, left: float) -> list[str]:
    parts = []
    for number, series in enumerate(plot.series):
        y = _MARGIN_TOP + _LEGEND_LINE * number
        parts += _draw_line([(left, y), (left + 20, y)], number)
        parts.append(_text(left + 28, y + 4, series.name, "start"))
    return parts


def _draw_line(points: Sequence[tuple[float, float]], number: int) -> list[str]:
    """A line with dots, in the style of series `number`."""
    colour = _COLOURS[number % len(_COLOURS)]
    dash = _DASHES[number // len(_COLOURS) % len(_DASHES)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    stroke = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
    line = f'<polyline points="{path}" fill="none" {stroke}/>'
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
    return [line, *dots]


def _text(x: float, y: float, text: str, anchor: str, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
    )


def _shares(positions: tuple[float, ...] | tuple[str, ...]) -> list[float]:
    """Positions scaled to the ends of the axis, 0 to 1."""
    numbers = [float(p) if isinstance(p, float) else float(i) for i, p in enumerate(positions)]
    low, extent = min(numbers), max(numbers) - min(numbers)
    return [(number - low) / extent if extent > 0 else 0.5 for number in numbers]


def _nice_scale(greatest: float) -> tuple[float, float]:
    """Tick distance and upper end of an axis from 0 to at least `greatest`: 4 to 10 ticks of 1, 2 or 5.

    >>> _nice_scale(0.37)
    (0.05, 0.4)
    """
    if greatest <= 0:
        return 0.25, 1.0
    power = 10.0 ** math.floor(math.log10(greatest / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if greatest / (factor * power) <= 8)
    return step, step * math.ceil(greatest / step - 1e-9)
