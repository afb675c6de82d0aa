"""Distributed training with Ray Train: workers that each call one engine function, and what they report.

Checkpoints are the engine's own and go to the output itself, a folder or S3, so that Ray keeps none: a worker
that starts, the first time or after a death, goes on from what the output holds.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from actors.monitor import Figures, RunMonitor
from actors.train_workers import MAX_FAULTS, WorkerSizes, first_cause, forwarded
from engine.corpora import Corpus
from engine.errors import RunError
from engine.objects.object_store import ObjectStore
from engine.solo.samples import SampleMaker, list_images
from engine.solo.training import TrainingConfig
from engine.solo.validation import Validation
from engine.store.pseudo_labels import Version
from engine.training.distribution import WorkerContext
from engine.training.settings import RunSettings


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingJob:
    """What is trained on what, and where it goes. `cache` is a local folder of each node; `init_from` the
    URI of a network to begin from."""

    version: Version
    corpus: Corpus
    output: ObjectStore
    config: TrainingConfig
    settings: RunSettings
    cache: Path
    validation: Validation | None = None
    init_from: str | None = None


def run_training(job: TrainingJob, sizes: WorkerSizes, on_figures: Callable[[int, Figures], None]) -> None:
    """Train; returns once the result is in the output.

    `on_figures` is called, from another thread, with the figures of every logged step. Raises RunError where
    the loss is no finite number, or where workers die too often.
    """
    monitor: Any = ray.remote(RunMonitor).options(num_cpus=0).remote()
    # Ray wants a folder for its own notes; nothing that is needed later is in it.
    with tempfile.TemporaryDirectory(prefix="maskmill-") as folder, forwarded(monitor, on_figures):
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={"job": job, "monitor": monitor, "threads": sizes.cpus_each},
            scaling_config=ScalingConfig(
                num_workers=sizes.workers,
                use_gpu=sizes.use_gpu,
                resources_per_worker={"CPU": sizes.cpus_each} | ({"GPU": 1} if sizes.use_gpu else {}),
            ),
            run_config=RunConfig(
                name="train_solo",
                storage_path=folder,
                # Ray's annotations are those of the class that this one replaces at run time.
                failure_config=FailureConfig(max_failures=MAX_FAULTS, max_preemption_failures=-1),  # type: ignore[call-arg]
            ),
        )
        try:
            trainer.fit()
        except SystemExit as error:  # how Ray ends a process that was interrupted
            raise KeyboardInterrupt from error
        except ray.train.TrainingFailedError as error:
            raise RunError(f"training failed: {first_cause(error)}") from error
    failure = ray.get(monitor.failure.remote())
    if failure is not None:
        raise RunError(failure)


def _train_worker(settings: dict[str, Any]) -> None:
    """One worker, from its start to the end of the run or to its death."""
    # Networks take seconds to import, and the driver and Ray's controller do without.
    from engine.solo.run import Run, train_solo

    job: TrainingJob = settings["job"]
    monitor = settings["monitor"]
    context = ray.train.get_context()
    place = WorkerContext(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=ray.train.torch.get_device(),
    )
    config = job.config
    torch.set_num_threads(settings["threads"])
    _use_deterministic_algorithms(config.deterministic)
    images = list_images(
        job.version, config.selection, config.keep_empty, config.held_out, config.ignore_above_score
    )
    maker = SampleMaker(images, job.corpus, job.cache, config.sample_task)
    run = Run(
        output=job.output,
        config=config,
        settings=job.settings,
        place=place,
        report=monitor.report_metrics.remote,
        on_checkpoint=lambda step: ray.train.report({"step": step}),
        validation=job.validation,
        init_from=job.init_from,
    )
    try:
        train_solo(run, maker)
    except RunError as error:
        # All workers raise it together. Were it Ray's to handle, the same would be tried again and again.
        ray.get(monitor.report_error.remote(str(error)))


def _use_deterministic_algorithms(wanted: bool) -> None:
    if wanted:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(wanted)
