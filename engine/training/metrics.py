"""Metrics of a training: JSON lines for programs, events for TensorBoard, and reports for the driver.

Objects cannot be appended to, and a run that resumes repeats the steps after its last checkpoint. So each
stretch between two checkpoints is one object, named by its first step: a repeated stretch replaces the
earlier one, and no line appears twice.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from engine.objects.object_store import ObjectStore
from engine.training.settings import RunSettings

Metrics = Mapping[str, float]
Report = Callable[[int, Metrics], None]

# Stored names: outputs of every version have them.
_LINES, _EVENTS, _UNREAD = "log/figures-", "log/events.out.tfevents.", "log/unread-"


def ignore_report(step: int, metrics: Metrics) -> None:
    """Report nothing."""


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """What a training's metrics are measured against: its settings, images per step, and the worker's rank.

    `report` is called with every logged step, on rank 0 only.
    """

    settings: RunSettings
    batch_size: int
    rank: int = 0
    report: Report = field(default=ignore_report)


class TrainingMetrics:
    """Collects what steps measure, and writes it with each checkpoint.

    Metrics are equal on all workers, so rank 0 logs them; images that could not be read belong to one worker,
    so every worker writes its own.
    """

    def __init__(self, output: ObjectStore, step: int, config: MetricsConfig) -> None:
        """`step` is the number of steps already taken."""
        self._output = output
        self._config = config
        self._logged_at = time.monotonic()
        self._logged_step = step
        self._begin_stretch(step)

    def _begin_stretch(self, step: int) -> None:
        self._first_step = step
        self._lines: list[str] = []
        self._unread: list[str] = []
        self._events = io.BytesIO()
        self._writer = RecordWriter(self._events)
        self._writer.write(Event(wall_time=0, file_version="brain.Event:2").SerializeToString())

    def add_step(self, step: int, metrics: Metrics, is_last: bool) -> None:
        """Log a step if it is due, with the throughput since the last logged one."""
        # The first step is logged at once: on a CPU a step may take a minute.
        if step % self._config.settings.log_every and step != 1 and not is_last:
            return
        now = time.monotonic()
        images = (step - self._logged_step) * self._config.batch_size
        speed = images / max(now - self._logged_at, 1e-9)
        self._logged_at, self._logged_step = now, step
        self.log(step, {**metrics, "images_per_s": speed})

    def log(self, step: int, metrics: Metrics) -> None:
        """Log metrics now, rounded to 6 digits."""
        if self._config.rank != 0:
            return
        rounded = {name: float(f"{value:.6g}") for name, value in metrics.items()}
        self._lines.append(json.dumps({"step": step, **rounded}))
        values = [Summary.Value(tag=name, simple_value=value) for name, value in rounded.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._writer.write(event.SerializeToString())
        self._config.report(step, rounded)

    def add_unread(self, step: int, image_id: str, reason: str) -> None:
        """Note an image from which nothing was learned."""
        self._unread.append(json.dumps({"step": step, "image_id": image_id, "reason": reason}))

    def write(self, next_step: int) -> None:
        """Write the stretch that ends here; the next one begins at `next_step`."""
        name = f"{self._first_step:09d}"
        if self._lines:
            self._output.write(f"{_LINES}{name}.jsonl", _as_lines(self._lines))
            self._output.write(f"{_EVENTS}{name}", self._events.getvalue())
        if self._unread:
            self._output.write(f"{_UNREAD}{name}-{self._config.rank:03d}.jsonl", _as_lines(self._unread))
        self._begin_stretch(next_step)


def _as_lines(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def read_metrics(output: ObjectStore) -> list[dict[str, float]]:
    """All logged metrics of a run, in the order of their steps."""
    keys = output.keys(_LINES)
    return [json.loads(line) for key in keys for line in output.read(key).decode().splitlines()]


def read_unread(output: ObjectStore) -> dict[str, str]:
    """Images that no worker could read, by id, with the last reason."""
    keys = output.keys(_UNREAD)
    lines = (json.loads(line) for key in keys for line in output.read(key).decode().splitlines())
    return {line["image_id"]: line["reason"] for line in lines}
