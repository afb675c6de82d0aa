"""A whole training: begin or go on, step by step, and keep what was learned and measured.

training.json                  the configuration, and which labels of which images
checkpoint.pt                  the state after the last whole stretch; a run goes on from here
network-000009000.safetensors  networks along the run
network.safetensors            the result
log/                           figures as JSON lines and for TensorBoard, a file for each stretch
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.errors import ConfigurationError, ObjectMissing
from engine.solo.batch import Batch
from engine.solo.samples import SampleMaker, load_batches
from engine.solo.trainer import Figures, SoloTrainer, TrainingConfig
from engine.solo.validation import Validation
from engine.solo.weights import pack_network
from engine.store.objects import ObjectStore
from engine.training.checkpoints import read_checkpoint, write_checkpoint
from engine.training.distribution import Place
from engine.training.log import RunLog
from engine.training.order import batch_numbers

DESCRIPTION_KEY = "training.json"
RESULT_KEY = "network.safetensors"

Report = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run does beside learning; none of it changes the result."""

    processes: int = 2
    """Processes beside each worker that read images and make samples; 0 leaves that to the worker."""
    log_every: int = 10
    """Steps between two lines of figures."""
    checkpoint_every: int = 500
    """Steps between two checkpoints, and two evaluations where there is something to evaluate on."""

    def __post_init__(self) -> None:
        if self.processes < 0:
            raise ConfigurationError(f"processes must not be negative, got {self.processes}")
        for name in ("log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is at least 1 step, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What a run of one worker works with.

    `report` is told the figures of every logged step, on the first worker alone; `on_checkpoint` the step
    of every checkpoint, on all workers; `validation` is measured there on the first worker.
    """

    output: ObjectStore
    config: TrainingConfig
    settings: RunSettings
    place: Place
    report: Report = field(default=lambda step, figures: None)
    on_checkpoint: Callable[[int], None] = field(default=lambda step: None)
    validation: Validation | None = None


def begin_output(
    output: ObjectStore, config: TrainingConfig, labels: Mapping[str, str], resume: bool
) -> bool:
    """Note in `output` what is trained; whether it holds the result already.

    `labels` says which labels of which images. Raises ConfigurationError where another run is there, or one
    that `resume` does not ask to go on with.
    """
    # Through JSON, so that what is compared is what would be read back.
    ours = json.loads(json.dumps({"config": asdict(config), "labels": dict(labels)}))
    try:
        theirs = json.loads(output.read(DESCRIPTION_KEY))
    except ObjectMissing:
        output.write(DESCRIPTION_KEY, (json.dumps(ours, indent=1, sort_keys=True) + "\n").encode())
        return False
    different = [
        name for name in ("labels", *ours["config"]) if _setting(ours, name) != _setting(theirs, name)
    ]
    if different:
        raise ConfigurationError(
            f"{output.uri} holds a training of another kind (it differs in {', '.join(different)}): give the "
            "same flags, or another --output"
        )
    if not resume:
        raise ConfigurationError(
            f"{output.uri} holds this training already: --resume goes on with it, or give another --output"
        )
    return next(output.keys(RESULT_KEY), None) is not None


def train_solo(run: Run, maker: SampleMaker) -> None:
    """Train from the last checkpoint in `output`, or from the beginning, and write the result there.

    A run that was interrupted and goes on ends with the weights of one that was not, bit for bit on CPUs of
    one kind with as many workers. Every worker calls this. Raises RunError where the loss is no finite
    number; WeightsError, StoreError.
    """
    config, place = run.config, run.place
    share = place.share_of(config.batch_size)
    state = read_checkpoint(run.output)
    trainer = SoloTrainer(config, place, pretrained=state is None)
    if state is not None:
        trainer.load_state(state)
    part = slice(place.rank * share, (place.rank + 1) * share)
    steps = range(trainer.step, config.steps)
    numbers = batch_numbers(config.seed, len(maker), config.batch_size, steps, part)
    _Loop(run, trainer).train(load_batches(maker, numbers, run.settings.processes))
    if place.rank == 0:
        run.output.write(RESULT_KEY, pack_network(trainer.network.state_dict(), config.solo))


class _Loop:
    """The steps of one worker, and what is written between them."""

    def __init__(self, run: Run, trainer: SoloTrainer) -> None:
        self._run = run
        self._trainer = trainer
        self._is_first = run.place.rank == 0
        self._log = RunLog(run.output, trainer.step)
        self._logged_at = time.monotonic()
        self._logged_step = trainer.step

    def train(self, batches: Iterator[Batch]) -> None:
        """Take a step with every batch."""
        settings, config = self._run.settings, self._run.config
        for batch in batches:
            figures = self._trainer.train_step(batch)
            step = self._trainer.step
            is_last = step == config.steps
            if step % settings.log_every == 0 or is_last:
                self._take_down(step, figures)
            if config.is_snapshot(step) and self._is_first:
                data = pack_network(self._trainer.network.state_dict(), config.solo)
                self._run.output.write(f"network-{step:09d}.safetensors", data)
            if step % settings.checkpoint_every == 0 or is_last:
                self._checkpoint(step)

    def _take_down(self, step: int, figures: Figures) -> None:
        now = time.monotonic()
        images = (step - self._logged_step) * self._run.config.batch_size
        speed = images / max(now - self._logged_at, 1e-9)
        self._logged_at, self._logged_step = now, step
        self._add(step, {**asdict(figures), "images_per_s": speed})

    def _checkpoint(self, step: int) -> None:
        if self._is_first:
            if self._run.validation is not None:
                network, solo = self._trainer.network, self._run.config.solo
                self._add(step, self._run.validation.measure(network, solo))
            # The log first: what is behind a checkpoint is never measured again.
            self._log.write(next_step=step)
            write_checkpoint(self._run.output, self._trainer.state())
        self._run.on_checkpoint(step)

    def _add(self, step: int, figures: Mapping[str, float]) -> None:
        if self._is_first:
            rounded = {name: float(f"{value:.6g}") for name, value in figures.items()}
            self._log.add(step, time.time(), rounded)
            self._run.report(step, rounded)


def _setting(description: Mapping[str, Any], name: str) -> Any:
    return description["labels"] if name == "labels" else description["config"].get(name)
