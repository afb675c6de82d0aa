"""One worker's pre-training from its first to its last step: checkpoints, log, the encoder and its card."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count, islice
from pathlib import Path

from engine.corpora import Corpus
from engine.objects.object_store import ObjectStore
from engine.pretraining.card import CARD_KEY, ENCODER_KEY, Card, pack_encoder, write_card
from engine.pretraining.config import PretrainingConfig
from engine.pretraining.network import build_network
from engine.pretraining.samples import Batch, SampleMaker, collate, list_sources
from engine.pretraining.trainer import Pretrainer, StepMetrics
from engine.pretraining.views import ViewConfig, ViewMaker
from engine.training.checkpoints import read_checkpoint, write_checkpoint
from engine.training.distribution import WorkerContext, from_first_worker, wait_for_all_workers
from engine.training.loader import load_batches
from engine.training.metrics import (
    MetricsConfig,
    Report,
    TrainingMetrics,
    ignore_report,
    read_metrics,
    read_unread,
)
from engine.training.order import batch_numbers
from engine.training.output import TrainingDescription
from engine.training.settings import RunSettings


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """Arguments of one worker's run.

    `cache` is a local folder for shrunk images; `report` gets the metrics of every logged step, on rank 0
    only, and `on_checkpoint` the step of every checkpoint, on all workers.
    """

    corpora: Sequence[Corpus]
    output: ObjectStore
    config: PretrainingConfig
    settings: RunSettings
    context: WorkerContext
    cache: Path
    report: Report = field(default=ignore_report)
    on_checkpoint: Callable[[int], None] = field(default=lambda step: None)


@dataclass
class RunState:
    """Position of a run besides its step, kept in checkpoints: the share done, 0 to 1, and training time."""

    progress: float = 0.0
    seconds: float = 0.0


def describe_pretraining(config: PretrainingConfig, corpora: Sequence[Corpus]) -> TrainingDescription:
    """The description by which an output recognises its run; the card is written last."""
    images = digest_images(corpora, config.limit)
    return TrainingDescription(config=asdict(config), data={"images": images}, result_key=CARD_KEY)


def check_training(config: PretrainingConfig, world_size: int) -> None:
    """Raise the errors that every worker would raise at its start: WeightsError, ConfigurationError."""
    WorkerContext(world_size=world_size).local_batch_size(config.batch_size)
    ViewMaker(views_in_use(config), build_network(config).layout.patch_size)


def pretrain(run: Run) -> None:
    """Train from the last checkpoint in `output`, or from the beginning, and write the encoder there.

    Every worker calls this. A resumed run ends with the encoder of an uninterrupted one, byte for byte on
    CPUs of one kind with the same number of workers and threads, unless `config.max_minutes` makes it depend
    on time. Raises RunError if the loss is not finite; CorpusError, WeightsError, StoreError.
    """
    config, context = run.config, run.context
    part = context.local_slice(config.batch_size)
    trainer, state = Pretrainer(config, context), RunState()
    checkpoint = read_checkpoint(run.output)
    if checkpoint is not None:
        trainer.load_state(checkpoint["trainer"])
        state = RunState(**checkpoint["state"])
    sources = list_sources(run.corpora, run.cache, config)
    maker = SampleMaker(sources, ViewMaker(views_in_use(config), trainer.patch_size), config.seed)
    loop = _Loop(run, trainer, state, len(maker))
    if state.progress < 1:
        numbers = batch_numbers(config.seed, len(maker), config.batch_size, count(trainer.step), part)
        processes = run.settings.num_processes(context.num_cpus)
        loop.train(load_batches(maker, numbers, processes, collate, context.device.type == "cuda"))
    # The card lists what all workers could not read.
    wait_for_all_workers()
    if context.is_first:
        loop.write_results()


def digest_images(corpora: Sequence[Corpus], limit: int | None) -> str:
    """Digest of the paths of all images in their order, 12 hexadecimal digits."""
    digest = hashlib.sha256()
    records = (record for corpus in corpora for record in corpus.records())
    for record in islice(records, limit):
        digest.update(f"{record.path}\0".encode())
    return digest.hexdigest()[:12]


def views_in_use(config: PretrainingConfig) -> ViewConfig:
    """The views to cut: local ones only if the image-level loss, which uses them, is on."""
    return config.views if config.dino.weight > 0 else replace(config.views, num_local=0)


class _Loop:
    """The steps of one worker, and what is written between them."""

    def __init__(self, run: Run, trainer: Pretrainer, state: RunState, num_images: int) -> None:
        self._run = run
        self._trainer = trainer
        self._state = state
        self._num_images = num_images
        metrics = MetricsConfig(
            settings=run.settings,
            batch_size=run.config.batch_size,
            rank=run.context.rank,
            report=run.report,
        )
        self._metrics = TrainingMetrics(run.output, trainer.step, metrics)

    def train(self, batches: Iterator[Batch]) -> None:
        """Take steps until the run's progress is 1."""
        step_s, start = 0.0, time.monotonic()
        while self._state.progress < 1:
            batch = next(batches)
            progress = self._progress_after_step(step_s)
            measured = self._trainer.train_step(batch.views, progress)
            step = self._trainer.step
            for rejection in batch.rejected:
                self._metrics.add_unread(step, rejection.image_id, rejection.reason)
            step_s, start = time.monotonic() - start, time.monotonic()
            self._state.seconds += step_s
            self._state.progress = progress
            is_last = progress >= 1
            self._metrics.add_step(step, self._described(measured), is_last)
            if step % self._run.settings.checkpoint_every == 0 or is_last:
                self._checkpoint(step)

    def _progress_after_step(self, step_s: float) -> float:
        """The run's progress after the next step, assuming that it takes `step_s`, as the last one did."""
        config = self._run.config
        progress = (self._trainer.step + 1) / config.steps
        if config.max_minutes is None:
            return progress
        timed = (self._state.seconds + step_s) / (60 * config.max_minutes)
        return min(1.0, from_first_worker(max(progress, timed), self._run.context.device))

    def _described(self, measured: StepMetrics) -> dict[str, float]:
        """A step's metrics with its position in the run."""
        epoch = self._trainer.step * self._run.config.batch_size / self._num_images
        return {"epoch": epoch, "progress": self._state.progress, **asdict(measured)}

    def _checkpoint(self, step: int) -> None:
        # The log first: a run that resumes from this checkpoint does not measure these steps again.
        self._metrics.write(next_step=step)
        if self._run.context.is_first:
            state = {"trainer": self._trainer.state(), "state": asdict(self._state)}
            write_checkpoint(self._run.output, state)
        self._run.on_checkpoint(step)

    def write_results(self) -> None:
        """Write the encoder, then its card, which says that the run is finished."""
        output, encoder = self._run.output, self._trainer.encoder
        output.write(ENCODER_KEY, pack_encoder(encoder.encoder_state(), encoder.layout))
        card = Card(
            layout=encoder.layout,
            corpora=tuple(corpus.uri for corpus in self._run.corpora),
            num_images=self._num_images,
            rejected=read_unread(output),
            config=self._run.config,
            steps=self._trainer.step,
            minutes=self._state.seconds / 60,
            device=self._run.context.device.type,
            metrics=read_metrics(output)[-1],
        )
        output.write(CARD_KEY, write_card(card).encode())
