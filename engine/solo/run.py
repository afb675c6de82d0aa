"""One worker's training of SOLO from its first to its last step: checkpoints, snapshots, log and result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

from engine.errors import RunError
from engine.objects.object_store import ObjectStore
from engine.solo.batch import Batch, collate
from engine.solo.samples import SampleMaker
from engine.solo.trainer import SoloTrainer, StepMetrics
from engine.solo.training_config import TrainingConfig
from engine.solo.training_output import RESULT_KEY, snapshot_key
from engine.solo.validation import Validation
from engine.solo.weights import pack_network
from engine.training.checkpoints import read_checkpoint, write_checkpoint
from engine.training.distribution import WorkerContext
from engine.training.loader import load_batches
from engine.training.metrics import MetricsConfig, Report, TrainingMetrics, ignore_report
from engine.training.order import batch_numbers
from engine.training.settings import RunSettings

# Steps in a row without a readable image after which a run gives up.
_MAX_UNREAD_STEPS = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """Arguments of one worker's run.

    `report` gets the metrics of every logged step, on rank 0 only; `on_checkpoint` gets the step of every
    checkpoint, on all workers. `validation` is measured at checkpoints, on rank 0. `init_from` is the URI of
    a trained network of the same architecture, from which training starts.
    """

    output: ObjectStore
    config: TrainingConfig
    settings: RunSettings
    context: WorkerContext
    report: Report = field(default=ignore_report)
    on_checkpoint: Callable[[int], None] = field(default=lambda step: None)
    validation: Validation | None = None
    init_from: str | None = None


def train_solo(run: Run, maker: SampleMaker) -> None:
    """Train from the last checkpoint in `output`, or from the beginning, and write the result there.

    Every worker calls this. A resumed run ends with the weights of an uninterrupted one, bit for bit on CPUs
    of one kind with the same number of workers and threads. Raises RunError if the loss is not finite or no
    image can be read; WeightsError, StoreError.
    """
    config, context = run.config, run.context
    part = context.local_slice(config.batch_size)
    state = read_checkpoint(run.output)
    trainer = SoloTrainer(config, context, pretrained=state is None and run.init_from is None)
    if state is not None:
        trainer.load_state(state)
    elif run.init_from is not None:
        trainer.load_initial(run.init_from)
    steps = range(trainer.step, config.steps)
    numbers = batch_numbers(config.seed, len(maker), config.batch_size, steps, part)
    batches = load_batches(maker, numbers, run.settings.num_processes(context.num_cpus), collate)
    _Loop(run, trainer).train(batches)
    if context.is_first:
        run.output.write(RESULT_KEY, pack_network(trainer.network.state_dict(), config.solo))


class _Loop:
    """The steps of one worker, and what is written between them."""

    def __init__(self, run: Run, trainer: SoloTrainer) -> None:
        self._run = run
        self._trainer = trainer
        metrics = MetricsConfig(
            settings=run.settings,
            batch_size=run.config.batch_size,
            rank=run.context.rank,
            report=run.report,
        )
        self._metrics = TrainingMetrics(run.output, trainer.step, metrics)
        self._unread_steps = 0

    def train(self, batches: Iterator[Batch]) -> None:
        """Take a step with every batch."""
        settings, config = self._run.settings, self._run.config
        for batch in batches:
            measured = self._trainer.train_step(batch)
            step = self._trainer.step
            self._check_readable(measured, batch)
            for image_id, failure in zip(batch.image_ids, batch.failures, strict=True):
                if failure:
                    self._metrics.add_unread(step, image_id, failure)
            is_last = step == config.steps
            self._metrics.add_step(step, asdict(measured), is_last)
            if step in config.snapshot_steps and self._run.context.is_first:
                data = pack_network(self._trainer.network.state_dict(), config.solo)
                self._run.output.write(snapshot_key(step), data)
            if step % settings.checkpoint_every == 0 or is_last:
                self._checkpoint(step)

    def _check_readable(self, measured: StepMetrics, batch: Batch) -> None:
        """Raise RunError, on all workers together, after many steps without a readable image."""
        is_unread = measured.unread == self._run.config.batch_size
        self._unread_steps = self._unread_steps + 1 if is_unread else 0
        if self._unread_steps == _MAX_UNREAD_STEPS:
            last = f"{batch.image_ids[0]!r}: {batch.failures[0]}"
            raise RunError(
                f"no image of {_MAX_UNREAD_STEPS} steps in a row could be read, the last one was {last}"
            )

    def _checkpoint(self, step: int) -> None:
        is_first = self._run.context.is_first
        if is_first and self._run.validation is not None:
            network, solo = self._trainer.network, self._run.config.solo
            self._metrics.log(step, self._run.validation.measure(network, solo))
        # The log first: a run that resumes from this checkpoint does not measure these steps again.
        self._metrics.write(next_step=step)
        if is_first:
            write_checkpoint(self._run.output, self._trainer.state())
        self._run.on_checkpoint(step)
