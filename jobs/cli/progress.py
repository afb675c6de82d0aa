"""How labelling and training look while they go on: live on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

if TYPE_CHECKING:
    from actors.pipeline import Progress

_SECONDS_BETWEEN_LINES = 10.0


class ProgressDisplay:
    """Shows progress from the moment it is entered until it is left.

    `count_total` says how many images there are to do; it may take long, so it runs beside the work and the
    total and the time left are shown once it has answered.
    """

    def __init__(self, console: Console, count_total: Callable[[], int]) -> None:
        self._console = console
        self._total: int | None = None
        self._count_total = count_total
        self._first: tuple[float, int] | None = None
        self._last_line = time.monotonic()
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> ProgressDisplay:
        threading.Thread(target=self._count, daemon=True).start()
        if self._console.is_terminal:
            self._live.start()
            self._live.update("starting the workers ...")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, progress: Progress) -> None:
        """Take notice of new progress, or that there is none."""
        if self._first is None and progress.images > 0:
            self._first = (time.monotonic(), progress.images)
        if self._console.is_terminal:
            self._live.update(self._bar(progress))
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            print(progress_line(progress, self._total, self._rate(progress)), flush=True)

    def _rate(self, progress: Progress) -> float:
        """Images a second since the first ones came; starting the workers says nothing about the rest."""
        if self._first is None:
            return 0.0
        seconds = time.monotonic() - self._first[0]
        return (progress.images - self._first[1]) / seconds if seconds > 0 else 0.0

    def _bar(self, progress: Progress) -> Table:
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=self._total, completed=progress.images, width=16, pulse=self._total is None)
        line.add_row(bar, progress_line(progress, self._total, self._rate(progress)))
        return line

    def _count(self) -> None:
        try:
            self._total = self._count_total()
        except Exception as error:  # the run itself reads the same listing and will report what is wrong
            print(f"cannot count the images: {error}", file=sys.stderr)


def progress_line(progress: Progress, total: int | None, images_per_s: float) -> str:
    """One line for people; a speed of 0 is one that is not known yet.

    >>> from actors.pipeline import Progress
    >>> from engine.types import Reason
    >>> done = Progress(images=40, instances=100)
    >>> done.reasons[Reason.TRUNCATED] = 2
    >>> progress_line(done, 100, 2.0)
    '40/100 images, 2.0 images/s, 2.5 masks/image, truncated 2, 0:00:30 left'
    >>> progress_line(Progress(), 100, 0.0)
    '0/100 images, at the first'
    """
    parts = [
        f"{progress.images}/{'?' if total is None else total} images",
        *([f"{images_per_s:.1f} images/s"] if images_per_s > 0 else []),
        f"{progress.instances / progress.images:.1f} masks/image" if progress.images else "at the first",
        *(f"{reason} {count}" for reason, count in sorted(progress.reasons.items())),
    ]
    if total is not None and images_per_s > 0:
        parts.append(f"{clock(max(total - progress.images, 0) / images_per_s)} left")
    return ", ".join(parts)


class TrainingDisplay:
    """Figures as they come: every one on a terminal, one in ten seconds in a log, every AP."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._last_line = 0.0
        self._first: tuple[float, int] | None = None

    def show(self, step: int, figures: Mapping[str, float]) -> None:
        """Take notice of a step's figures."""
        now = time.monotonic()
        is_due = now - self._last_line >= _SECONDS_BETWEEN_LINES
        if is_due or sys.stdout.isatty() or "loss" not in figures or step == self._num_steps:
            self._last_line = now
            print(figures_line(step, self._num_steps, figures, self._seconds_left(now, step)), flush=True)

    def _seconds_left(self, now: float, step: int) -> float | None:
        if self._first is None:
            self._first = (now, step)
        start, first = self._first
        return (now - start) / (step - first) * (self._num_steps - step) if step > first else None


def figures_line(step: int, num_steps: int, figures: Mapping[str, float], seconds_left: float | None) -> str:
    """One line for people.

    >>> figures_line(20, 100, {"loss": 1.23456, "images_per_s": 8.0}, 40.0)
    'step 20/100, loss 1.235, images_per_s 8, 0:00:40 left'
    """
    parts = [f"step {step}/{num_steps}", *(f"{name} {value:.4g}" for name, value in figures.items())]
    return ", ".join([*parts, *([] if seconds_left is None else [f"{clock(seconds_left)} left"])])


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock(3725.4)
    '1:02:05'
    """
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"
