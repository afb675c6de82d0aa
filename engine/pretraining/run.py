"""A whole run: begin or go on, step by step, keep what was measured, and write the encoder."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from engine.corpora import Corpus
from engine.errors import ConfigurationError, CorpusError
from engine.objects.object_store import ObjectStore
from engine.pretraining.card import CARD_KEY, ENCODER_KEY, Card, pack_encoder, write_card
from engine.pretraining.config import PretrainingConfig
from engine.pretraining.network import build_network
from engine.pretraining.samples import Batch, ImageCache, SampleStream, batches
from engine.pretraining.trainer import Figures, Pretrainer
from engine.pretraining.views import ViewConfig, ViewMaker
from engine.training.checkpoints import read_checkpoint, write_checkpoint
from engine.training.distribution import WorkerContext, from_all_workers, from_first_worker
from engine.training.order import batch_numbers
from engine.types import ImageRecord

LOG_KEY = "losses.jsonl"
_SECONDS_BETWEEN_WRITES = 10.0


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run does beside learning; none of it changes the result."""

    cache: Path
    """Local folder for shrunk images; it may be shared by runs and is safe to delete between them."""
    processes: int = 2
    """Processes beside each worker that decode images and cut views; 0 leaves that to the worker."""
    log_every: int = 10
    """Steps between two lines of figures."""
    checkpoint_minutes: float = 5.0
    """Time between two checkpoints."""
    limit: int | None = None
    """Train on the first so many images only."""

    def __post_init__(self) -> None:
        if self.processes < 0:
            raise ConfigurationError(f"processes must not be negative, got {self.processes}")
        if self.log_every < 1:
            raise ConfigurationError(f"log_every is at least 1 step, got {self.log_every}")
        if self.checkpoint_minutes < 0:
            raise ConfigurationError(
                f"checkpoint_minutes must not be negative, got {self.checkpoint_minutes}"
            )
        if self.limit is not None and self.limit < 1:
            raise ConfigurationError(f"limit is at least 1 image, got {self.limit}")


@dataclass
class _RunState:
    """How far a run is and what it has seen; kept in the checkpoint."""

    progress: float = 0.0
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)
    rejected: dict[str, str] = field(default_factory=dict)


def check_output(output: ObjectStore, config: PretrainingConfig, images: str, resume: bool) -> bool:
    """Whether `output` holds the finished encoder of this run already; `images` is their `digest_images`.

    Raises ConfigurationError where another run is there, or one that `resume` does not ask to go on with.
    """
    state = _stored_state(output, config, images)
    if state is None:
        return False
    if not resume:
        raise ConfigurationError(
            f"{output.uri} holds a run already: --resume goes on with it, or give another --output"
        )
    return bool(state["diary"]["progress"] >= 1)


def check_training(config: PretrainingConfig, world_size: int) -> None:
    """Raise what every worker would find wrong with the configuration: WeightsError, ConfigurationError."""
    WorkerContext(world_size=world_size).local_batch_size(config.batch_size)
    ViewMaker(views_in_use(config), build_network(config).layout.patch_size)


def pretrain(
    corpora: Sequence[Corpus],
    output: ObjectStore,
    config: PretrainingConfig,
    settings: RunSettings,
    place: WorkerContext,
) -> None:
    """Train from what `output` holds of this run, or from the beginning, and write the encoder there.

    A run that was interrupted and goes on ends with the same encoder, byte for byte, as one that was not: on
    CPUs of one kind, with the same number of workers, where `config.max_minutes` does not make it a matter of
    time. Every worker calls this. Raises RunError where the loss is no finite number; CorpusError,
    WeightsError, ConfigurationError, StoreError.
    """
    share = place.local_batch_size(config.batch_size)
    trainer, diary = Pretrainer(config, place), _RunState()
    images = digest_images(corpora, settings.limit)
    state = _stored_state(output, config, images)
    if state is not None:
        trainer.load_state(state["trainer"])
        diary = _RunState(**state["diary"])
    if diary.progress >= 1:
        return
    sources = list_sources(corpora, config, settings)
    stream = SampleStream(sources, ViewMaker(views_in_use(config), trainer.patch_size), config.seed)
    part = slice(place.rank * share, (place.rank + 1) * share)
    numbers = batch_numbers(config.seed, len(sources), config.batch_size, count(trainer.step), part)
    run = _Run(
        trainer=trainer,
        diary=diary,
        output=output,
        config=config,
        images=images,
        settings=settings,
        place=place,
    )
    run.train(batches(stream, numbers, settings.processes, place.device.type == "cuda"), len(sources))
    run.finish(tuple(corpus.uri for corpus in corpora), len(sources))


def digest_images(corpora: Sequence[Corpus], limit: int | None) -> str:
    """Digest of the names of all images that are learned from, in their order, 12 hexadecimal digits."""
    digest = hashlib.sha256()
    records = (record for corpus in corpora for record in corpus.records())
    for record in islice(records, limit):
        digest.update(f"{record.path}\0".encode())
    return digest.hexdigest()[:12]


def list_sources(
    corpora: Sequence[Corpus], config: PretrainingConfig, settings: RunSettings
) -> list[tuple[ImageCache, ImageRecord]]:
    """All images of the corpora, by name, with where their pixels come from. Raises CorpusError for none."""
    counts = config.regions.counts if config.regions.weight > 0 else ()
    sources: list[tuple[ImageCache, ImageRecord]] = []
    for corpus in corpora:
        cache = ImageCache(corpus, settings.cache, config.cache_side, counts, config.decoding)
        sources += [(cache, record) for record in islice(corpus.records(), settings.limit)]
    if not sources:
        raise CorpusError(f"no images in {', '.join(corpus.uri for corpus in corpora)}")
    return sources[: settings.limit]


def views_in_use(config: PretrainingConfig) -> ViewConfig:
    """The views that are cut: local ones serve the image-level loss only."""
    return config.views if config.dino.weight > 0 else replace(config.views, num_local=0)


def _stored_state(output: ObjectStore, config: PretrainingConfig, images: str) -> dict[str, Any] | None:
    """The run's last checkpoint. Raises ConfigurationError where it is of another configuration or of other
    images."""
    state = read_checkpoint(output)
    if state is None:
        return None
    theirs, ours = json.loads(state["configuration"]), json.loads(_as_json(config))
    different = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    if different:
        raise ConfigurationError(
            f"{output.uri} holds a run of another configuration (it differs in {', '.join(different)}): "
            "give the same flags, or another --output"
        )
    if state.get("images") != images:
        raise ConfigurationError(
            f"{output.uri} holds a run on other images: give the same --corpus and --limit, or another "
            "--output"
        )
    return state


def _as_json(config: PretrainingConfig) -> str:
    return json.dumps(asdict(config), sort_keys=True)


@dataclass(kw_only=True)
class _Run:
    """The steps of one worker, and what is written between them."""

    trainer: Pretrainer
    diary: _RunState
    output: ObjectStore
    config: PretrainingConfig
    images: str
    settings: RunSettings
    place: WorkerContext

    def train(self, stream: Iterator[Batch], num_images: int) -> None:
        """Take steps until the run's progress is 1."""
        now = written = checkpointed = time.monotonic()
        step_s = 0.0
        while self.diary.progress < 1:
            batch = next(stream)
            self.diary.rejected.update(batch.rejected)
            progress = self._progress_after_step(step_s)
            figures = self.trainer.train_step(batch.views, progress)
            step_s = time.monotonic() - now
            now += step_s
            self.diary.seconds += step_s
            self.diary.progress = progress
            if self.trainer.step % self.settings.log_every == 0 or progress >= 1:
                self.diary.lines.append(self._line(figures, num_images, step_s))
                if now - written >= _SECONDS_BETWEEN_WRITES:
                    self._write_log()
                    written = now
            if now - checkpointed >= 60 * self.settings.checkpoint_minutes:
                self._write_checkpoint()
                checkpointed = now

    def _progress_after_step(self, step_s: float) -> float:
        """The share of the run that is done after the next step, should it take `step_s` as the last did."""
        progress = (self.trainer.step + 1) / self.config.steps
        if self.config.max_minutes is None:
            return progress
        timed = (self.diary.seconds + step_s) / (60 * self.config.max_minutes)
        return min(1.0, from_first_worker(max(progress, timed), self.place.device))

    def _line(self, figures: Figures, num_images: int, step_s: float) -> str:
        seen = self.trainer.step * self.config.batch_size
        rounded = {name: float(f"{value:.6g}") for name, value in asdict(figures).items()}
        heads = {
            "step": self.trainer.step,
            "epoch": round(seen / num_images, 3),
            "progress": round(self.diary.progress, 6),
            "images_per_s": round(self.config.batch_size / step_s, 2),
        }
        return json.dumps(heads | rounded)

    def _write_log(self) -> None:
        if self.place.rank == 0:
            self.output.write(LOG_KEY, "".join(f"{line}\n" for line in self.diary.lines).encode())

    def _write_checkpoint(self) -> None:
        if self.place.rank == 0:
            state = {
                "configuration": _as_json(self.config),
                "images": self.images,
                "trainer": self.trainer.state(),
                "diary": asdict(self.diary),
            }
            write_checkpoint(self.output, state)
            self._write_log()

    def finish(self, corpora: tuple[str, ...], num_images: int) -> None:
        """Write the encoder and its card, then the checkpoint that says that all is done."""
        for rejected in from_all_workers(self.diary.rejected):
            self.diary.rejected.update(rejected)
        if self.place.rank != 0:
            return
        encoder = self.trainer.encoder
        self.output.write(ENCODER_KEY, pack_encoder(encoder.encoder_state(), encoder.layout))
        card = Card(
            layout=encoder.layout,
            corpora=corpora,
            num_images=num_images,
            rejected=self.diary.rejected,
            config=self.config,
            steps=self.trainer.step,
            minutes=self.diary.seconds / 60,
            device=self.place.device.type,
            figures=json.loads(self.diary.lines[-1]),
        )
        self.output.write(CARD_KEY, write_card(card).encode())
        self._write_checkpoint()
