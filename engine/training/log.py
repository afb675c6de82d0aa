"""What a run measured, for programs (JSON lines) and for TensorBoard.

Objects cannot be appended to, and a run that goes on from a checkpoint repeats the steps behind it. So each
stretch between two checkpoints is an object of its own, named by its first step: a repeated stretch replaces
the one before, and nothing is there twice.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from engine.objects.object_store import ObjectStore


class RunLog:
    """The figures since the last checkpoint, and the images that one worker could not read."""

    def __init__(self, output: ObjectStore, step: int, rank: int) -> None:
        """`step` is where the run begins or goes on, `rank` the worker's number."""
        self._output = output
        self._rank = rank
        self._begin(step)

    def _begin(self, step: int) -> None:
        self._first_step = step
        self._lines: list[str] = []
        self._unread: list[str] = []
        self._events = io.BytesIO()
        self._writer = RecordWriter(self._events)
        self._writer.write(Event(wall_time=0, file_version="brain.Event:2").SerializeToString())

    def add(self, step: int, wall_time_s: float, figures: Mapping[str, float]) -> None:
        """Take down the figures of a step; `wall_time_s` is since the epoch, for TensorBoard alone."""
        self._lines.append(json.dumps({"step": step, **figures}))
        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        event = Event(wall_time=wall_time_s, step=step, summary=Summary(value=values))
        self._writer.write(event.SerializeToString())

    def add_unread(self, step: int, image_id: str, reason: str) -> None:
        """Take down that nothing was learned from an image."""
        self._unread.append(json.dumps({"step": step, "image_id": image_id, "reason": reason}))

    def write(self, next_step: int) -> None:
        """Write what there is; a new stretch begins at `next_step`."""
        name = f"{self._first_step:09d}"
        if self._lines:
            self._output.write(f"log/figures-{name}.jsonl", _as_lines(self._lines))
            self._output.write(f"log/events.out.tfevents.{name}", self._events.getvalue())
        if self._unread:
            self._output.write(f"log/unread-{name}-{self._rank:03d}.jsonl", _as_lines(self._unread))
        self._begin(next_step)


def _as_lines(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def read_figures(output: ObjectStore) -> list[dict[str, float]]:
    """All figures of a run, in the order of their steps."""
    keys = list(output.keys("log/figures-"))
    return [json.loads(line) for key in keys for line in output.read(key).decode().splitlines()]
