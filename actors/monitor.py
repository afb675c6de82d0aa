"""Actor through which the workers of a training report to the driver. It does not import torch."""

from __future__ import annotations

from collections.abc import Mapping


class RunMonitor:
    """Logged metrics of rank 0 that the driver has not shown yet, and the first error of any worker."""

    def __init__(self) -> None:
        self._metrics: list[tuple[int, Mapping[str, float]]] = []
        self._error: str | None = None

    def report_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a step."""
        self._metrics.append((step, metrics))

    def report_error(self, message: str) -> None:
        """Say why the run cannot go on; later errors are ignored."""
        self._error = self._error or message

    def drain_metrics(self) -> list[tuple[int, Mapping[str, float]]]:
        """Remove and return the metrics reported since the last call."""
        drained, self._metrics = self._metrics, []
        return drained

    def error(self) -> str | None:
        """The first reported error, or None."""
        return self._error
