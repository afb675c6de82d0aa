#!/usr/bin/env python
"""Train a class-agnostic instance segmenter on a store of labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro

from engine.corpora import open_corpus
from engine.errors import ConfigurationError
from engine.evaluation.ground_truth import read_ground_truth
from engine.objects.object_store import open_objects
from engine.solo.training import RESULT_KEY, TrainingConfig, check_output, create_output, labels_fingerprint
from engine.solo.validation import plan_held_out
from engine.store.planning import check_is_finished, check_same_corpus
from engine.store.pseudo_labels import PseudoLabelStore
from engine.store.selection import check_stability
from engine.training.distribution import WorkerContext
from jobs.cli.console import run_job
from jobs.cli.flags import ClusterFlags, TrainingFlags
from jobs.cli.progress import ProgressDisplay

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Train SOLO on the instances of a store, with the superpixel-guided loss: a network comes out.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    store: str
    """Where the labels are: a folder or s3://bucket/prefix."""
    output: str
    """Where checkpoints, log and network go: a folder or s3://bucket/prefix."""
    corpus: str
    """Where the images of the labels are now."""
    round: int | None = None
    """The round of labels; the latest by default."""
    resume: bool = False
    """Go on with the training that --output holds, from its last checkpoint."""
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(default_factory=TrainingConfig)
    ground_truth: str | None = None
    """What people drew in these images, as jobs/evaluate.py takes it: AP on the part that --held-out keeps
    from training is measured at every checkpoint."""
    trainer: Annotated[TrainingFlags, tyro.conf.arg(name="")] = field(default_factory=TrainingFlags)
    cluster: Annotated[ClusterFlags, tyro.conf.arg(name="")] = field(default_factory=ClusterFlags)

    def __post_init__(self) -> None:
        if (self.ground_truth is not None) != (self.training.held_out > 0):
            raise ConfigurationError(
                "--ground-truth and --held-out go together: the images to measure on, and their truth"
            )


def main(arguments: TrainArguments) -> None:
    # Imported once the flags are known to be right, so that mistakes answer at once.
    from actors.train_workers import size_workers
    from actors.training import TrainingJob, run_training
    from jobs.cli.cluster import connect, largest_node_cpus

    labels = open_objects(arguments.store)
    version = PseudoLabelStore(labels).version(arguments.round)
    check_is_finished(version)
    corpus = open_corpus(arguments.corpus, version.info.corpus_kind, kept_indexes=labels)
    check_same_corpus(corpus, version)
    output = open_objects(arguments.output)
    if arguments.training.objective.needs_stability:
        check_stability(version, "the mask term adaptive")
    validation = None
    if arguments.ground_truth is not None:
        truths = list(read_ground_truth(arguments.ground_truth))
        validation = plan_held_out(version, corpus, truths, arguments.training)
        print(f"held out: {len(validation.images)} images with ground truth")
    described = (output, arguments.training, labels_fingerprint(version), arguments.resume)
    if check_output(*described):
        print(f"nothing to do: {output.uri} holds the trained network")
        return
    joined = connect(arguments.cluster)
    sizes = size_workers(joined.cpus, joined.gpus, largest_node_cpus(), arguments.trainer.workers)
    WorkerContext(world_size=sizes.workers).local_batch_size(arguments.training.batch_size)
    # Only now: a mistake in the flags must not take the output.
    create_output(*described)
    job = TrainingJob(
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
        run_training(job, sizes, display.show_metrics)
    print(f"network: {output.uri}/{RESULT_KEY}")


if __name__ == "__main__":
    run_job(TrainArguments, main)
