"""Distributed training with Ray Train: workers that each call one engine function, and what they report.

Checkpoints are the engine's own and go to the output itself, a folder or S3, so that Ray keeps none: a worker
that starts, the first time or after a death, goes on from what the output holds.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from actors.mailbox import Figures, Mailbox
from engine.corpora import Corpus
from engine.errors import ConfigurationError, RunError
from engine.solo.config import RunSettings
from engine.solo.samples import SampleMaker, list_images
from engine.solo.training import TrainingConfig
from engine.solo.validation import Validation
from engine.store.objects import ObjectStore
from engine.store.pseudo_labels import Version
from engine.training.distribution import Place

# Deaths of workers that were nobody's will; nodes that are taken away are counted apart and never too many.
_MAX_FAULTS = 3
_POLL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class WorkerSizes:
    """How many workers train, and what each of them gets."""

    workers: int
    cpus_each: int
    use_gpu: bool

    def __post_init__(self) -> None:
        for name in ("workers", "cpus_each"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is at least 1, got {getattr(self, name)}")


def size_workers(cpus: float, gpus: float, node_cpus: float, workers: int | None) -> WorkerSizes:
    """Workers for a cluster with so many free CPUs and GPUs, whose largest node has `node_cpus`.

    One for each GPU unless `workers` says otherwise, without GPUs one in all. Raises ConfigurationError where
    the cluster has not enough: Ray would wait for it for ever.

    >>> size_workers(32, 4, 16, None)
    WorkerSizes(workers=4, cpus_each=8, use_gpu=True)
    """
    use_gpu = gpus >= 1
    if workers is None:
        workers = int(gpus) if use_gpu else 1
    if workers > cpus or (use_gpu and workers > gpus):
        raise ConfigurationError(
            f"{workers} workers need a CPU{' and a GPU' if use_gpu else ''} each, and {cpus:g} CPUs and "
            f"{gpus:g} GPUs are free: give --workers {max(int(min(cpus, gpus) if use_gpu else cpus), 1)}"
        )
    return WorkerSizes(workers=workers, cpus_each=int(min(cpus // workers, node_cpus)), use_gpu=use_gpu)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingJob:
    """What is trained on what, and where it goes. `cache` is a local folder of each node; `begins_from` the
    URI of a network to begin from."""

    version: Version
    corpus: Corpus
    output: ObjectStore
    config: TrainingConfig
    settings: RunSettings
    cache: Path
    validation: Validation | None = None
    begins_from: str | None = None


def run_training(job: TrainingJob, sizes: WorkerSizes, on_figures: Callable[[int, Figures], None]) -> None:
    """Train; returns once the result is in the output.

    `on_figures` is called, from another thread, with the figures of every logged step. Raises RunError where
    the loss is no finite number, or where workers die too often.
    """
    mailbox: Any = ray.remote(Mailbox).options(num_cpus=0).remote()
    # Ray wants a folder for its own notes; nothing that is needed later is in it.
    with tempfile.TemporaryDirectory(prefix="maskmill-") as folder, _forwarded(mailbox, on_figures):
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={"job": job, "mailbox": mailbox, "threads": sizes.cpus_each},
            scaling_config=ScalingConfig(
                num_workers=sizes.workers,
                use_gpu=sizes.use_gpu,
                resources_per_worker={"CPU": sizes.cpus_each} | ({"GPU": 1} if sizes.use_gpu else {}),
            ),
            run_config=RunConfig(
                name="train_solo",
                storage_path=folder,
                # Ray's annotations are those of the class that this one replaces at run time.
                failure_config=FailureConfig(max_failures=_MAX_FAULTS, max_preemption_failures=-1),  # type: ignore[call-arg]
            ),
        )
        try:
            trainer.fit()
        except SystemExit as error:  # how Ray ends a process that was interrupted
            raise KeyboardInterrupt from error
        except ray.train.TrainingFailedError as error:
            raise RunError(f"training failed: {_cause(error)}") from error
    failure = ray.get(mailbox.failure.remote())
    if failure is not None:
        raise RunError(failure)


def _train_worker(settings: dict[str, Any]) -> None:
    """One worker, from its start to the end of the run or to its death."""
    # Networks take seconds to import, and the driver and Ray's controller do without.
    from engine.solo.run import Run, train_solo

    job: TrainingJob = settings["job"]
    mailbox = settings["mailbox"]
    context = ray.train.get_context()
    place = Place(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=ray.train.torch.get_device(),
    )
    config = job.config
    torch.set_num_threads(settings["threads"])
    _use_deterministic_algorithms(config.deterministic)
    images = list_images(
        job.version, config.selection, config.keep_empty, config.held_out, config.unsure_score
    )
    maker = SampleMaker(images, job.corpus, job.cache, config.sample_task)
    run = Run(
        output=job.output,
        config=config,
        settings=job.settings,
        place=place,
        report=mailbox.leave_figures.remote,
        on_checkpoint=lambda step: ray.train.report({"step": step}),
        validation=job.validation,
        begins_from=job.begins_from,
    )
    try:
        train_solo(run, maker)
    except RunError as error:
        # All workers raise it together. Were it Ray's to handle, the same would be tried again and again.
        ray.get(mailbox.leave_failure.remote(str(error)))


def _use_deterministic_algorithms(wanted: bool) -> None:
    if wanted:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(wanted)


@contextlib.contextmanager
def _forwarded(mailbox: Any, on_figures: Callable[[int, Figures], None]) -> Iterator[None]:
    """While the block runs, hand figures on as they come; those that are left, at its end."""
    is_over = threading.Event()

    def forward() -> None:
        while True:
            was_over = is_over.wait(_POLL_S)
            for step, figures in ray.get(mailbox.take_figures.remote()):
                on_figures(step, figures)
            if was_over:
                return

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _cause(error: Exception) -> str:
    """The last line of the first worker's error, or of the error itself."""
    failures = getattr(error, "worker_failures", {})
    shown = str(next(iter(failures.values()), error)).strip()
    return shown.splitlines()[-1] if shown else type(error).__name__
