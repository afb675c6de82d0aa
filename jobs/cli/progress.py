"""Progress of a job: one live line on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

if TYPE_CHECKING:
    from actors.pipeline import Progress

_SECONDS_BETWEEN_LINES = 10.0
# Warn once this many images are labelled and more than this share of them has no masks.
_MIN_IMAGES, _MANY_EMPTY = 16, 0.7
_EMPTY_REASONS = ("no_background", "small_background", "no_foreground", "refined_away")
_ADVICE = (
    "Thresholds may not fit the encoder's features: stop with Ctrl-C and look at a preview of --limit 16, or "
    "try --method tree"
)


class ProgressDisplay:
    """Shows how many `unit` of `total` are done, from the moment it is entered until it is left.

    A callable `total` may take long: it runs in a thread, and the total and the time left appear once it has
    answered. None is a total that nobody knows. `label` begins every line. A display that is not entered
    prints lines on a terminal too.
    """

    def __init__(
        self,
        total: int | Callable[[], int] | None,
        unit: str = "images",
        *,
        label: str = "",
        console: Console | None = None,
    ) -> None:
        self._console = console or Console()
        self._total = None if callable(total) else total
        self._count_total = total if callable(total) else None
        self._unit = unit
        self._label = label
        self._first: tuple[float, int] | None = None
        self._last_line = time.monotonic()
        self._has_warned = False
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> ProgressDisplay:
        if self._count_total is not None:
            threading.Thread(target=self._count, args=(self._count_total,), daemon=True).start()
        if self._console.is_terminal:
            self._live.start()
            self._live.update("starting ...")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, done: int, details: Sequence[str] = (), *, keep: bool = False) -> None:
        """Show that `done` are done; `keep` prints a line that stays, on a terminal too."""
        if self._first is None and done > 0:
            self._first = (time.monotonic(), done)
        line = self._line(done, details)
        if self._live.is_started:
            self._live.update(self._bar(done, line))
        if keep or (not self._live.is_started and (self._console.is_terminal or self._is_line_due())):
            self._last_line = time.monotonic()
            self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def show_labelling(self, progress: Progress) -> None:
        """Show labelled images with their masks and rejects."""
        masks = f"{progress.instances / progress.images:.1f} masks/image" if progress.images else "starting"
        rejects = (f"{reason} {count}" for reason, count in sorted(progress.reasons.items()))
        self.show(progress.images, [masks, *rejects])
        empty = sum(progress.reasons[reason] for reason in _EMPTY_REASONS)
        if not self._has_warned and progress.images >= _MIN_IMAGES and empty > _MANY_EMPTY * progress.images:
            self._has_warned = True
            warning = f"warning: no masks in {empty} of the first {progress.images} images. {_ADVICE}"
            self._console.print(warning, style="bold red", soft_wrap=True, markup=False, highlight=False)

    def show_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a training step; the first and the last line stay, and every line with AP."""
        details = [f"{name} {value:.4g}" for name, value in metrics.items()]
        is_end = self._first is None or step == self._total
        self.show(step, details, keep=is_end or "loss" not in metrics)

    def _is_line_due(self) -> bool:
        return time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES

    def _line(self, done: int, details: Sequence[str]) -> str:
        """One line for people. The rate leaves out the start-up before the first images or steps."""
        total = "?" if self._total is None else self._total
        label = f"{self._label}: " if self._label else ""
        parts = [f"{label}{done}/{total} {self._unit}", *details]
        if self._first is not None and done > self._first[1]:
            per_s = (done - self._first[1]) / (time.monotonic() - self._first[0])
            parts.append(f"{per_s:.3g} {self._unit}/s")
            if self._total is not None:
                parts.append(f"{clock(max(self._total - done, 0) / per_s)} left")
        return ", ".join(parts)

    def _bar(self, done: int, line: str) -> Table:
        row = Table.grid(padding=(0, 1))
        row.add_row(ProgressBar(total=self._total, completed=done, width=16, pulse=self._total is None), line)
        return row

    def _count(self, count_total: Callable[[], int]) -> None:
        try:
            self._total = count_total()
        except Exception as error:  # the run reads the same listing and will report what is wrong
            print(f"cannot count the {self._unit}: {error}", file=sys.stderr)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock(3725.4)
    '1:02:05'
    """
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"
