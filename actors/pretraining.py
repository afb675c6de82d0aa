"""Pre-training on a cluster: one Ray Train worker per device, each running `engine.pretraining.run.pretrain`.

Checkpoints lie in the run's output and not in Ray's storage: whether a worker died, the cluster went away or
somebody typed --resume, a run goes on from the same place by the same code.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from engine.corpora import Corpus
from engine.errors import ObjectMissing, RunError
from engine.objects.object_store import ObjectStore
from engine.pretraining.config import PretrainingConfig
from engine.pretraining.run import LOG_KEY, RunSettings, pretrain
from engine.training.distribution import WorkerContext

_SECONDS_BETWEEN_LOOKS = 5.0


@dataclass(frozen=True, kw_only=True)
class PretrainingRun:
    """What is to be learned from what, and where it goes."""

    corpora: tuple[Corpus, ...]
    output: ObjectStore
    config: PretrainingConfig
    settings: RunSettings


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many processes train together, and what Ray reserves for each.

    `storage` is a folder or s3:// URI that all nodes reach, where Ray keeps its own notes of the run.
    """

    count: int
    cpus_each: float
    uses_gpus: bool
    storage: str


def run_pretraining(run: PretrainingRun, workers: Workers, on_line: Callable[[str], None]) -> None:
    """Train to the end; `on_line` is called, from a thread of its own, with every new line of figures.

    Workers that die are started again up to 3 times, preempted ones without end, from the last checkpoint.
    Raises RunError where training failed or the loss is no finite number.
    """
    # Ray's own annotations describe the old Train, and V2 runs.
    trainer = TorchTrainer(
        _train,  # type: ignore[arg-type]
        train_loop_config={"run": run, "threads": max(1, int(workers.cpus_each))},
        scaling_config=ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.uses_gpus,
            resources_per_worker={"CPU": workers.cpus_each, **({"GPU": 1.0} if workers.uses_gpus else {})},
        ),
        run_config=RunConfig(
            name="pretraining",
            storage_path=workers.storage,
            failure_config=FailureConfig(max_failures=3, max_preemption_failures=-1),  # type: ignore[call-arg]
        ),
    )
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(run.output, on_line, over), daemon=True)
    watcher.start()
    try:
        result: Any = trainer.fit()
    except SystemExit as error:  # how Ray ends a process that was interrupted
        raise KeyboardInterrupt from error
    except ray.train.TrainingFailedError as error:
        raise RunError(f"pre-training failed: {_first_cause(error)}") from error
    finally:
        over.set()
        watcher.join()
    if result.return_value is not None:
        raise RunError(result.return_value)


def _train(arguments: dict[str, Any]) -> str | None:
    """One worker. A loss that is no number would be none again, so it is returned as text and not raised."""
    run: PretrainingRun = arguments["run"]
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(arguments["threads"])
    context = ray.train.get_context()
    place = WorkerContext(rank=context.get_world_rank(), world_size=context.get_world_size(), device=device)
    try:
        pretrain(run.corpora, run.output, run.config, run.settings, place)
    except RunError as error:
        return str(error)
    return None


def _watch(output: ObjectStore, on_line: Callable[[str], None], over: threading.Event) -> None:
    """Hand on new lines of the log until the run is over, and those of its last moments."""
    shown = len(_lines(output))
    is_over = False
    while not is_over:
        is_over = over.wait(_SECONDS_BETWEEN_LOOKS)
        lines = _lines(output)
        for line in lines[shown:]:
            on_line(line)
        shown = max(shown, len(lines))


def _lines(output: ObjectStore) -> list[str]:
    try:
        return output.read(LOG_KEY).decode().splitlines()
    except ObjectMissing:
        return []


def _first_cause(error: Exception) -> str:
    """The first worker's own words, without Ray's traceback."""
    failures = getattr(error, "worker_failures", {})
    cause = next(iter(failures.values()), error)
    return (str(cause).strip().splitlines() or [type(cause).__name__])[-1]
