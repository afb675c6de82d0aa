"""A whole training: begin or go on, step by step, and keep what was learned and measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field

from engine.errors import RunError
from engine.objects.object_store import ObjectStore
from engine.solo.batch import Batch
from engine.solo.samples import SampleMaker, load_batches
from engine.solo.trainer import Figures, SoloTrainer
from engine.solo.training import RESULT_KEY, TrainingConfig, snapshot_key
from engine.solo.validation import Validation
from engine.solo.weights import pack_network
from engine.training.checkpoints import read_checkpoint, write_checkpoint
from engine.training.distribution import WorkerContext
from engine.training.log import RunLog
from engine.training.order import batch_numbers
from engine.training.settings import RunSettings

# A corpus of which nothing can be read teaches nothing, however long.
_MAX_UNREAD_STEPS = 20

Report = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What a run of one worker works with.

    `report` is told the figures of every logged step, on the first worker alone; `on_checkpoint` the step
    of every checkpoint, on all workers; `validation` is measured there on the first worker. `init_from` is
    the URI of a trained network of the same kind, in the place of first weights.
    """

    output: ObjectStore
    config: TrainingConfig
    settings: RunSettings
    place: WorkerContext
    report: Report = field(default=lambda step, figures: None)
    on_checkpoint: Callable[[int], None] = field(default=lambda step: None)
    validation: Validation | None = None
    init_from: str | None = None


def train_solo(run: Run, maker: SampleMaker) -> None:
    """Train from the last checkpoint in `output`, or from the beginning, and write the result there.

    A run that was interrupted and goes on ends with the weights of one that was not, bit for bit on CPUs of
    one kind with as many workers. Every worker calls this. Raises RunError where the loss is no finite
    number or no image can be read; WeightsError, StoreError.
    """
    config, place = run.config, run.place
    share = place.local_batch_size(config.batch_size)
    state = read_checkpoint(run.output)
    trainer = SoloTrainer(config, place, pretrained=state is None and run.init_from is None)
    if state is not None:
        trainer.load_state(state)
    elif run.init_from is not None:
        trainer.load_initial(run.init_from)
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
        self._log = RunLog(run.output, trainer.step, run.place.rank)
        self._logged_at = time.monotonic()
        self._logged_step = trainer.step
        self._unread_steps = 0

    def train(self, batches: Iterator[Batch]) -> None:
        """Take a step with every batch."""
        settings, config = self._run.settings, self._run.config
        for batch in batches:
            figures = self._trainer.train_step(batch)
            step = self._trainer.step
            self._check_readable(figures, batch)
            for image_id, failure in zip(batch.image_ids, batch.failures, strict=True):
                if failure:
                    self._log.add_unread(step, image_id, failure)
            is_last = step == config.steps
            # The first step is taken down for whoever waits: on a CPU a step may take a minute.
            if step % settings.log_every == 0 or step == 1 or is_last:
                self._take_down(step, figures)
            if step in config.snapshot_steps and self._is_first:
                data = pack_network(self._trainer.network.state_dict(), config.solo)
                self._run.output.write(snapshot_key(step), data)
            if step % settings.checkpoint_every == 0 or is_last:
                self._checkpoint(step)

    def _check_readable(self, figures: Figures, batch: Batch) -> None:
        """Raise RunError, on all workers together, where no image of many steps in a row could be read."""
        is_unread = figures.unread == self._run.config.batch_size
        self._unread_steps = self._unread_steps + 1 if is_unread else 0
        if self._unread_steps == _MAX_UNREAD_STEPS:
            last = f"{batch.image_ids[0]!r}: {batch.failures[0]}"
            raise RunError(f"no image of {_MAX_UNREAD_STEPS} steps in a row could be read, at last {last}")

    def _take_down(self, step: int, figures: Figures) -> None:
        now = time.monotonic()
        images = (step - self._logged_step) * self._run.config.batch_size
        speed = images / max(now - self._logged_at, 1e-9)
        self._logged_at, self._logged_step = now, step
        self._add(step, {**asdict(figures), "images_per_s": speed})

    def _checkpoint(self, step: int) -> None:
        if self._is_first and self._run.validation is not None:
            network, solo = self._trainer.network, self._run.config.solo
            self._add(step, self._run.validation.measure(network, solo))
        # The log first: what is behind a checkpoint is never measured again.
        self._log.write(next_step=step)
        if self._is_first:
            write_checkpoint(self._run.output, self._trainer.state())
        self._run.on_checkpoint(step)

    def _add(self, step: int, figures: Mapping[str, float]) -> None:
        if self._is_first:
            rounded = {name: float(f"{value:.6g}") for name, value in figures.items()}
            self._log.add(step, time.time(), rounded)
            self._run.report(step, rounded)
