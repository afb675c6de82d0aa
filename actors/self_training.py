"""Self-training on a cluster: trains, labels and measures round after round, as engine/selftraining decides.

Every phase resumes what an interrupted run left, and does nothing if it is finished.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from actors.pipeline import LabellingRun, Progress, run_labelling
from actors.pool import PoolSize
from actors.storage import Work
from actors.train_workers import WorkerSizes, run_workers
from actors.training_jobs import SoloJob
from engine import __version__
from engine.corpora import Corpus
from engine.evaluation.ground_truth import AnnotatedImage, read_ground_truth
from engine.labelling.config import LabellingConfig
from engine.labelling.description import NetworkDescription, describe_labelling, describe_network
from engine.objects.object_store import ObjectStore, open_objects
from engine.selftraining.lineage import (
    check_next_round,
    describe_round_training,
    network_before,
    round_folder,
    training_data,
)
from engine.selftraining.phases import Phase, next_phase
from engine.selftraining.round_metrics import (
    RoundMetrics,
    describe_measurement,
    keep_metrics,
    measure_round,
    recall_metrics,
)
from engine.selftraining.rounds import SelfTrainingConfig
from engine.solo.training_output import describe_training, snapshot_key
from engine.solo.validation import plan_held_out
from engine.store.planning import copy_plans
from engine.store.pseudo_labels import PseudoLabelStore, Version
from engine.store.version_info import VersionInfo
from engine.training.metrics import Report
from engine.training.output import create_output
from engine.training.settings import RunSettings


@dataclass(frozen=True, kw_only=True)
class SelfTrainingJob:
    """The labels of round 0, their images, and the output of all trainings.

    `cache` is a local folder on each node; `ground_truth` is a file or folder to measure on, never learned.
    """

    store: PseudoLabelStore
    corpus: Corpus
    output: ObjectStore
    config: SelfTrainingConfig
    settings: RunSettings
    cache: Path
    chunk_size: int
    ground_truth: str | None = None


@dataclass(frozen=True, kw_only=True)
class SelfTrainingSizes:
    """The cluster's device, the workers that train and the pool that labels; they take turns."""

    device: str
    trainers: WorkerSizes
    labellers: PoolSize


class SelfTrainingDisplay(Protocol):
    """The driver's display."""

    def show_line(self, line: str) -> None:
        """Show what begins or what is finished already."""

    def show_training(self, num_steps: int) -> AbstractContextManager[Report]:
        """A function that shows the metrics of a training's steps until the context ends."""

    def show_labelling(
        self, count_images: Callable[[], int]
    ) -> AbstractContextManager[Callable[[Progress], None]]:
        """A function that shows progress until the context ends; `count_images` may take long."""


def run_self_training(
    job: SelfTrainingJob, sizes: SelfTrainingSizes, display: SelfTrainingDisplay
) -> list[RoundMetrics]:
    """Make rounds of labels until the policy stops; returns the metrics of all rounds, round 0 first."""
    return _Executor(job, sizes, display).run()


class _Executor:
    """Carries out phases."""

    def __init__(self, job: SelfTrainingJob, sizes: SelfTrainingSizes, display: SelfTrainingDisplay) -> None:
        self._job = job
        self._sizes = sizes
        self._display = display

    def run(self) -> list[RoundMetrics]:
        """Carry out phases until there is none left."""
        config = self._job.config
        versions = [self._job.store.version(0)]
        measured: list[RoundMetrics] = []
        networks: list[list[str]] = []
        while (phase := next_phase(config, measured, len(versions), len(networks))).is_work:
            if phase == Phase.MEASURE:
                measured.append(self._measure(versions))
            elif phase == Phase.TRAIN:
                networks.append(self._train(versions[-1]))
            else:
                versions.append(self._predict(versions[-1], networks[-1]))
        if phase == Phase.SETTLED:
            change = f"{measured[-1].change:.1%} of the labels changed"
            self._display.show_line(f"no further round: {change}, less than min_change")
        return measured

    def _measure(self, versions: Sequence[Version]) -> RoundMetrics:
        """The metrics of the last version, from the output if it holds them."""
        job, version = self._job, versions[-1]
        before = versions[-2] if len(versions) > 1 else None
        key = f"{round_folder(version.info.round)}.json"
        measured = describe_measurement(version, before, job.config, job.ground_truth)
        metrics = recall_metrics(job.output, key, measured)
        if metrics is None:
            metrics = measure_round(version, before, job.config, self._truths)
            keep_metrics(job.output, key, measured, metrics)
        return metrics

    def _train(self, version: Version) -> list[str]:
        """Learn a round's labels; returns the URIs of the snapshots, the result last."""
        job, number = self._job, version.info.round
        config = job.config.training_of(number)
        check_next_round(job.store, version, job.config)
        output = open_objects(f"{job.output.uri}/{round_folder(number)}")
        snapshots = [f"{output.uri}/{snapshot_key(step)}" for step in config.snapshot_steps]
        init_from = network_before(job.output, job.config, number)
        description = describe_training(config, training_data(version, init_from))
        if create_output(output, description, resume=True):
            self._display.show_line(f"round {number}: {output.uri} holds the trained network already")
            return snapshots
        validation = None
        if config.held_out > 0:
            validation = plan_held_out(version, job.corpus, self._truths or (), config)
        sizes = self._sizes.trainers
        self._display.show_line(
            f"round {number}: training on {version.name} with {sizes.workers} worker(s) of "
            f"{sizes.cpus_each} CPUs"
        )
        training = SoloJob(
            version=version,
            corpus=job.corpus,
            output=output,
            config=config,
            settings=job.settings,
            cache=job.cache,
            validation=validation,
            init_from=init_from,
        )
        with self._display.show_training(config.steps) as report:
            run_workers(training, sizes, report)
        return snapshots

    def _predict(self, version: Version, networks: Sequence[str]) -> Version:
        """Label a round's images by the networks that learned it: the next round."""
        job, number = self._job, version.info.round + 1
        labelling = job.config.labelling(networks)
        network = describe_network(labelling)
        predicted = job.store.begin(self._describe_version(version, labelling, network), "resume")
        committed = predicted.committed()
        if predicted.is_finished() and version.committed() <= committed:
            self._display.show_line(f"round {number}: {job.store.uri} holds these labels already")
            return predicted
        # A round has the images of the one before it, in the same shards: the corpus is not listed again.
        num_images = copy_plans(version, predicted)
        work = Work(corpus=job.corpus, version=predicted, shard_size=1, chunk_size=job.chunk_size)
        run = LabellingRun(
            work=work, config=labelling, image_size=network.image_size, device=self._sizes.device
        )
        self._display.show_line(f"round {number}: labelling {num_images} images by {networks[-1]}")

        def count_images() -> int:
            return sum(len(plan.records) for plan in predicted.plans() if plan.index not in committed)

        with self._display.show_labelling(count_images) as show:
            run_labelling(run, self._sizes.labellers, show)
        return predicted

    def _describe_version(
        self, version: Version, labelling: LabellingConfig, network: NetworkDescription
    ) -> VersionInfo:
        """The identity of the version that follows `version`."""
        job, number = self._job, version.info.round
        return VersionInfo(
            round=number + 1,
            configuration={
                **describe_labelling(labelling, network),
                "chunk_size": job.chunk_size,
                **describe_round_training(job.config, number),
            },
            weights_digest=network.weights_digest,
            parent=version.name,
            code_version=__version__,
            device=self._sizes.device,
            corpus_kind=version.info.corpus_kind,
        )

    @cached_property
    def _truths(self) -> list[AnnotatedImage] | None:
        truth = self._job.ground_truth
        return list(read_ground_truth(truth)) if truth is not None else None
