#!/usr/bin/env python
"""Train a segmenter on a store's labels, label again by it, and learn from that: round after round."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from engine.corpora import Corpus, open_corpus
from engine.errors import ConfigurationError, ObjectMissing, StoreError
from engine.evaluation.ground_truth import AnnotatedImage, read_ground_truth
from engine.labelling.description import describe_network, describe_next_round
from engine.objects.object_store import open_objects
from engine.selftraining.figures import RoundMetrics, measure_round
from engine.selftraining.rounds import SelfTrainingConfig
from engine.solo.training import RESULT_KEY, create_output, labels_fingerprint, snapshot_key
from engine.solo.validation import plan_held_out
from engine.store.planning import check_is_finished, check_same_corpus, copy_plans
from engine.store.pseudo_labels import PseudoLabelStore, Version
from engine.store.version_info import describe_difference
from jobs.cli.console import run_job
from jobs.cli.flags import ClusterFlags, TrainingFlags
from jobs.cli.progress import ProgressDisplay


@dataclass(frozen=True, kw_only=True)
class SelfTrainArguments:
    """Self-training: SOLO learns the store's labels, its predictions are the next round's, and so on.

    From the labels of round 0 to the last round in one command; run it again to go on after a stop. The store
    gets a version of labels for each round, --output a folder with the networks of each training.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    store: str
    """Where the labels are, and where those of the next rounds go: a folder or s3://bucket/prefix."""
    output: str
    """Where networks, checkpoints and logs go: a folder or s3://bucket/prefix."""
    corpus: str
    """Where the images of the labels are now."""
    config: Annotated[SelfTrainingConfig, tyro.conf.arg(name="")] = field(default_factory=SelfTrainingConfig)
    ground_truth: str | None = None
    """What people drew in these images, as jobs/evaluate.py takes it: the labels of every round are measured,
    and the networks on the part that --held-out keeps from training. Nothing is learned from it."""
    chunk_size: int = 8
    """Images that travel and are labelled together."""
    trainer: Annotated[TrainingFlags, tyro.conf.arg(name="")] = field(default_factory=TrainingFlags)
    cluster: Annotated[ClusterFlags, tyro.conf.arg(name="")] = field(default_factory=ClusterFlags)

    def __post_init__(self) -> None:
        if self.config.training.held_out > 0 and self.ground_truth is None:
            raise ConfigurationError("--held-out leaves out images to measure on: give their --ground-truth")
        if self.chunk_size < 1:
            raise ConfigurationError(f"--chunk-size is at least 1 image, got {self.chunk_size}")


def main(arguments: SelfTrainArguments) -> None:
    job = SelfTraining(arguments)
    version = job.store.version(0)
    figures = [job.measure(version, None)]
    while len(figures) <= arguments.config.rounds and not arguments.config.has_settled(figures[-1].change):
        check_is_learnable(figures[-1])
        networks = job.train(version)
        before, version = version, job.predict(version, networks)
        figures.append(job.measure(version, before))
    if len(figures) <= arguments.config.rounds:
        print(f"no further round: {figures[-1].change:.1%} of the labels changed, less than --min-change")
    Console().print(figures_table(figures))
    print(f"labels: {job.store.uri} (version {version.name}); network: {networks[-1]}")


def check_is_learnable(figures: RoundMetrics) -> None:
    """Raise StoreError where nothing of a round is learned from."""
    if figures.learned == 0:
        flag = "--selection" if figures.round == 0 else "--later.selection"
        raise StoreError(
            f"none of the {figures.masks} masks of {figures.version} is learned from: lower {flag}.min-score "
            "and the like, or train the round before for longer"
        )


class SelfTraining:
    """The parts of a round. Each does what is left of it to do, and nothing where that is nothing."""

    def __init__(self, arguments: SelfTrainArguments) -> None:
        from jobs.cli.cluster import connect

        self._arguments = arguments
        labels = open_objects(arguments.store)
        self.store = PseudoLabelStore(labels)
        version = self.store.version(0)
        check_is_finished(version)
        kind = version.info.corpus_kind
        self._corpus: Corpus = open_corpus(arguments.corpus, kind, kept_indexes=labels)
        check_same_corpus(self._corpus, version)
        self._output = open_objects(arguments.output)
        # Counted once: trainings and labelling take turns.
        self._joined = connect(arguments.cluster)

    def train(self, version: Version) -> list[str]:
        """Learn a round's labels; returns the URIs of the networks along the training, the result last."""
        from actors.train_workers import size_workers
        from actors.training import TrainingJob, run_training
        from jobs.cli.cluster import largest_node_cpus

        arguments, number = self._arguments, version.info.round
        config = arguments.config.training_of(number)
        self._check_following(version)
        output = open_objects(f"{arguments.output}/{_folder(number)}")
        networks = [f"{output.uri}/{snapshot_key(step)}" for step in config.snapshot_steps]
        init_from = self._network_before(number)
        labels = labels_fingerprint(version)
        labels["init_from"] = version.info.weights_digest if init_from else ""
        if create_output(output, config, labels, resume=True):
            print(f"round {number}: {output.uri} holds the trained network already")
            return networks
        sizes = size_workers(
            self._joined.cpus, self._joined.gpus, largest_node_cpus(), arguments.trainer.workers
        )
        validation = None
        if config.held_out > 0:
            validation = plan_held_out(version, self._corpus, self._truths or (), config)
        print(
            f"round {number}: training on {version.name} with {sizes.workers} worker(s) of {sizes.cpus_each} "
            "CPUs",
            flush=True,
        )
        job = TrainingJob(
            version=version,
            corpus=self._corpus,
            output=output,
            config=config,
            settings=arguments.trainer.run,
            cache=arguments.trainer.cache.expanduser(),
            validation=validation,
            init_from=init_from,
        )
        with ProgressDisplay(config.steps, "steps") as display:
            run_training(job, sizes, display.show_metrics)
        return networks

    def _check_following(self, version: Version) -> None:
        """Raise StoreError where the next round is there already and came of another training than this one:
        now, and not when this one is over."""
        number = version.info.round
        if number + 1 not in self.store.rounds():
            return
        there = self.store.version(number + 1).info
        configuration = {**there.configuration, **self._describe_training(number)}
        here = replace(there, parent=version.name, configuration=configuration)
        if here.digest != there.digest:
            raise StoreError(
                f"{self.store.uri} holds round {number + 1} of another training "
                f"({describe_difference(there, here)}); give those flags, or another --store and --output"
            )

    def predict(self, version: Version, networks: Sequence[str]) -> Version:
        """Label the images of a round by the networks that have learned it: the next round."""
        from actors.pipeline import LabellingRun, run_labelling
        from actors.pool import size_pool
        from actors.storage import Work

        arguments, number = self._arguments, version.info.round
        labelling = arguments.config.labelling(networks)
        network = describe_network(labelling)
        training = self._describe_training(number)
        info = describe_next_round(
            labelling, network, version.info, chunk_size=arguments.chunk_size, training=training
        )
        following = self.store.begin(replace(info, device=self._joined.device), "resume")
        committed = following.committed()
        if following.is_finished() and version.committed() <= committed:
            print(f"round {number + 1}: {self.store.uri} holds these labels already")
            return following
        # A round has the images of the one before it, in its shards: nothing is listed, nothing cut anew.
        num_images = copy_plans(version, following)
        work = Work(corpus=self._corpus, version=following, shard_size=1, chunk_size=arguments.chunk_size)
        run = LabellingRun(
            work=work, config=labelling, image_size=network.image_size, device=self._joined.device
        )
        print(f"round {number + 1}: labelling {num_images} images by {networks[-1]}", flush=True)
        size = size_pool(self._joined.cpus, self._joined.gpus)

        def count_images_to_do() -> int:
            plans = following.plans()
            return sum(len(plan.records) for plan in plans if plan.index not in committed)

        with ProgressDisplay(count_images_to_do) as display:
            run_labelling(run, size, display.show_labelling)
        return following

    def measure(self, version: Version, before: Version | None) -> RoundMetrics:
        """The figures of a round, kept in the output, as long as they are of the same."""
        arguments = self._arguments
        key = f"{_folder(version.info.round)}.json"
        selections = [
            arguments.config.selection_of(found.info.round) for found in (before or version, version)
        ]
        measured = {
            "before": labels_fingerprint(before) if before is not None else None,
            "labels": labels_fingerprint(version),
            "selections": [asdict(selection) for selection in selections],
            "ground_truth": arguments.ground_truth,
        }
        try:
            kept = json.loads(self._output.read(key))
        except ObjectMissing:
            kept = {}
        if kept.get("measured") == measured and kept["figures"]["version"] == version.name:
            return RoundMetrics(**kept["figures"])
        figures = measure_round(version, before, arguments.config, self._truths)
        content = {"measured": measured, "figures": asdict(figures)}
        self._output.write(key, (json.dumps(content, indent=1) + "\n").encode())
        return figures

    def _describe_training(self, number: int) -> dict[str, Any]:
        """How the networks came about that have learned a round, as a version's configuration holds it."""
        training = asdict(self._arguments.config.training_of(number))
        # A place decides nothing, and what is there has become part of the networks, whose digests are known.
        training["solo"].pop("backbone_weights")
        return {
            "training": training,
            "begin": "scratch" if number == 0 else self._arguments.config.later.begin,
        }

    def _network_before(self, number: int) -> str | None:
        """The network of the round before, where a training begins from it."""
        if number == 0 or self._arguments.config.later.begin == "scratch":
            return None
        return f"{self._output.uri}/{_folder(number - 1)}/{RESULT_KEY}"

    @cached_property
    def _truths(self) -> list[AnnotatedImage] | None:
        truth = self._arguments.ground_truth
        return list(read_ground_truth(truth)) if truth is not None else None


def _folder(number: int) -> str:
    """Where in the output the training on a round's labels is."""
    return f"round-{number:03d}"


def figures_table(figures: Sequence[RoundMetrics]) -> Table:
    """A row for each round."""
    table = Table(
        "round", "labelled images", "masks", "learned from", "stability", "changed", "mask AP", "box AP"
    )
    for found in figures:
        cells = [str(value) for value in (found.round, found.labelled, found.masks, found.learned)]
        shown = ("-" if found.mean_stability is None else f"{found.mean_stability:.2f}",)
        shares = (found.change, found.mask_ap, found.box_ap)
        table.add_row(*cells, *shown, *("-" if value is None else f"{value:.1%}" for value in shares))
    for column in table.columns:
        column.justify = "right"
    return table


if __name__ == "__main__":
    run_job(SelfTrainArguments, main)
