#!/usr/bin/env python
"""Train a class-agnostic instance segmenter on a store of labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from engine.corpora import Corpus, open_corpus
from engine.errors import ConfigurationError
from engine.evaluation.ground_truth import read_ground_truth
from engine.objects.object_store import open_objects
from engine.solo.training_config import TrainingConfig
from engine.solo.training_output import RESULT_KEY, describe_training, labels_fingerprint
from engine.solo.validation import Validation, plan_held_out
from engine.store.planning import check_is_finished, check_same_corpus
from engine.store.pseudo_labels import PseudoLabelStore, Version
from engine.store.selection import check_stability
from engine.training.distribution import WorkerContext
from engine.training.output import check_output, create_output
from jobs.cli.console import run_job
from jobs.cli.flags import ClusterFlags, TrainingFlags
from jobs.cli.progress import ProgressDisplay


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Train SOLO on the instances of a store with the superpixel-guided loss; the result is a network.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    store: str
    """The labels: a folder or s3://bucket/prefix."""
    output: str
    """Checkpoints, log and network: a folder or s3://bucket/prefix."""
    corpus: str
    """Current location of the labels' images."""
    round: int | None = None
    """The round of labels to learn; default: the latest."""
    resume: bool = False
    """Resume the training in --output from its last checkpoint."""
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(default_factory=TrainingConfig)
    ground_truth: str | None = None
    """Ground truth of these images, as for jobs/evaluate.py. AP on the part that --held-out keeps from
    training is measured at every checkpoint."""
    trainer: Annotated[TrainingFlags, tyro.conf.arg(name="")] = field(default_factory=TrainingFlags)
    cluster: Annotated[ClusterFlags, tyro.conf.arg(name="")] = field(default_factory=ClusterFlags)

    def __post_init__(self) -> None:
        if (self.ground_truth is not None) != (self.training.held_out > 0):
            raise ConfigurationError(
                "--ground-truth and --held-out go together: images to measure on, and their ground truth"
            )


def main(arguments: TrainArguments) -> None:
    # Imported once the flags are known to be right, so that mistakes answer at once.
    from actors.train_workers import run_workers, size_workers
    from actors.training_jobs import SoloJob
    from jobs.cli.cluster import connect, largest_node_cpus

    labels = open_objects(arguments.store)
    version = PseudoLabelStore(labels).version(arguments.round)
    check_is_finished(version)
    corpus = open_corpus(arguments.corpus, version.info.corpus_kind, kept_indexes=labels)
    check_same_corpus(corpus, version)
    output = open_objects(arguments.output)
    if arguments.training.objective.needs_stability:
        check_stability(version, "the mask term adaptive")
    validation = plan_validation_of(arguments, version, corpus)
    description = describe_training(arguments.training, labels_fingerprint(version))
    if check_output(output, description, arguments.resume):
        print(f"nothing to do: {output.uri} holds the trained network")
        return
    resources = connect(arguments.cluster)
    sizes = size_workers(resources.cpus, resources.gpus, largest_node_cpus(), arguments.trainer.workers)
    WorkerContext(world_size=sizes.workers).local_batch_size(arguments.training.batch_size)
    # Only now: a mistake in the flags must not claim the output.
    create_output(output, description, arguments.resume)
    job = SoloJob(
        version=version,
        corpus=corpus,
        output=output,
        config=arguments.training,
        settings=arguments.trainer.run,
        cache=arguments.trainer.cache.expanduser(),
        validation=validation,
    )
    print(f"training on {version.name} with {sizes.workers} worker(s) of {sizes.cpus_each} CPUs", flush=True)
    with ProgressDisplay(arguments.training.steps, "steps") as display:
        run_workers(job, sizes, display.show_metrics)
    print(f"network: {output.uri}/{RESULT_KEY}")


def plan_validation_of(arguments: TrainArguments, version: Version, corpus: Corpus) -> Validation | None:
    """The held-out images with ground truth, or None."""
    if arguments.ground_truth is None:
        return None
    truths = list(read_ground_truth(arguments.ground_truth))
    validation = plan_held_out(version, corpus, truths, arguments.training)
    print(f"held out: {len(validation.images)} images with ground truth")
    return validation


if __name__ == "__main__":
    run_job(TrainArguments, main)
