"""What a training's first worker tells the driver. An actor of its own, so it does without torch."""

from __future__ import annotations

from collections.abc import Mapping

Figures = Mapping[str, float]


class RunMonitor:
    """Where the first worker leaves what the driver shows."""

    def __init__(self) -> None:
        self._figures: list[tuple[int, Figures]] = []
        self._failure: str | None = None

    def report_metrics(self, step: int, figures: Figures) -> None:
        """Add the figures of a step."""
        self._figures.append((step, figures))

    def report_error(self, message: str) -> None:
        """Say why the run cannot go on; the first to say so is heard."""
        self._failure = self._failure or message

    def drain_metrics(self) -> list[tuple[int, Figures]]:
        """The figures that nobody has taken yet."""
        taken, self._figures = self._figures, []
        return taken

    def failure(self) -> str | None:
        """Why the run ended, if it did not end well."""
        return self._failure
