"""Distributed training with Ray Train: workers that each run one engine function, and their reports.

Checkpoints are the engine's own and go to the training's output, a folder or S3, so Ray keeps none: a worker
that starts, for the first time or after a crash, resumes from the output.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from actors.monitor import RunMonitor
from engine.bounds import Bounded, Count
from engine.errors import ConfigurationError, RunError
from engine.training.distribution import WorkerContext
from engine.training.metrics import Report

# Crashes of workers that end a run; workers of preempted nodes are not counted.
MAX_CRASHES = 3
POLL_S = 0.5


class TrainingJob(Protocol):
    """A training to run on every worker; it is pickled to them."""

    @property
    def name(self) -> str:
        """What Ray's dashboard calls the run."""

    def train(self, context: WorkerContext, report: Report, on_checkpoint: Callable[[int], None]) -> None:
        """Train from the output's last checkpoint to the end.

        `report` takes the metrics of logged steps, `on_checkpoint` the step of each checkpoint. Raises
        RunError, on all workers together, if trying again would fail again.
        """


@dataclass(frozen=True, kw_only=True)
class WorkerSizes(Bounded):
    """The number of workers, and the CPUs and GPU of each."""

    workers: Count
    cpus_each: Count
    use_gpu: bool


def size_workers(cpus: float, gpus: float, node_cpus: float, workers: int | None) -> WorkerSizes:
    """Workers for a cluster with `cpus` and `gpus` free, whose largest node has `node_cpus`.

    Default: one worker per GPU, or one without GPUs. Raises ConfigurationError if the cluster is too small,
    since Ray would wait for ever.

    >>> size_workers(32, 4, 16, None)
    WorkerSizes(workers=4, cpus_each=8, use_gpu=True)
    """
    use_gpu = gpus >= 1
    if workers is None:
        workers = int(gpus) if use_gpu else 1
    if workers > cpus or (use_gpu and workers > gpus):
        raise ConfigurationError(
            f"{workers} workers need a CPU{' and a GPU' if use_gpu else ''} each, and {cpus:g} CPUs and "
            f"{gpus:g} GPUs are free: set workers to {max(int(min(cpus, gpus) if use_gpu else cpus), 1)}"
        )
    return WorkerSizes(workers=workers, cpus_each=int(min(cpus // workers, node_cpus)), use_gpu=use_gpu)


def run_workers(job: TrainingJob, sizes: WorkerSizes, on_metrics: Report) -> None:
    """Train; returns once the result is in the job's output.

    `on_metrics` is called, from another thread, with the metrics of every logged step. Raises RunError if the
    loss is not finite or workers crash too often.
    """
    monitor: Any = ray.remote(RunMonitor).options(num_cpus=0).remote()
    # Ray requires a folder for its notes on the run; nothing in it is needed later.
    with tempfile.TemporaryDirectory(prefix="maskmill-") as folder, _forwarded(monitor, on_metrics):
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={"job": job, "monitor": monitor, "cpus": sizes.cpus_each},
            scaling_config=ScalingConfig(
                num_workers=sizes.workers,
                use_gpu=sizes.use_gpu,
                resources_per_worker={"CPU": sizes.cpus_each} | ({"GPU": 1} if sizes.use_gpu else {}),
            ),
            run_config=RunConfig(
                name=job.name,
                storage_path=folder,
                # Ray's annotations are those of the class that this one replaces at run time.
                failure_config=FailureConfig(max_failures=MAX_CRASHES, max_preemption_failures=-1),  # type: ignore[call-arg]
            ),
        )
        try:
            trainer.fit()
        except SystemExit as error:  # how Ray ends a process that was interrupted
            raise KeyboardInterrupt from error
        except ray.train.TrainingFailedError as error:
            raise RunError(f"training failed: {first_cause(error)}") from error
    message = ray.get(monitor.error.remote())
    if message is not None:
        raise RunError(message)


def _train_worker(arguments: dict[str, Any]) -> None:
    """One worker, from its start to the end of the run."""
    job: TrainingJob = arguments["job"]
    monitor = arguments["monitor"]
    ray_context = ray.train.get_context()
    context = WorkerContext(
        rank=ray_context.get_world_rank(),
        world_size=ray_context.get_world_size(),
        device=ray.train.torch.get_device(),
        num_cpus=arguments["cpus"],
    )
    torch.set_num_threads(context.num_cpus)
    try:
        job.train(context, monitor.report_metrics.remote, lambda step: ray.train.report({"step": step}))
    except RunError as error:
        # All workers raise it together. Ray would restart them, and the same would happen again.
        ray.get(monitor.report_error.remote(str(error)))


@contextlib.contextmanager
def _forwarded(monitor: Any, on_metrics: Report) -> Iterator[None]:
    """Forward the monitor's metrics while the block runs, and the remaining ones at its end."""
    is_over = threading.Event()

    def forward() -> None:
        while True:
            was_over = is_over.wait(POLL_S)
            for step, metrics in ray.get(monitor.drain_metrics.remote()):
                on_metrics(step, metrics)
            if was_over:
                return

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def first_cause(error: Exception) -> str:
    """The last line of the first worker's error, or of the error itself if no worker failed.

    >>> first_cause(ValueError("first line\\nlast line"))
    'last line'
    """
    failures = getattr(error, "worker_failures", {})
    cause = next(iter(failures.values()), error)
    lines = str(cause).strip().splitlines()
    return lines[-1] if lines else type(cause).__name__
