#!/usr/bin/env python
"""Train a class-agnostic instance segmenter on a store of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro

from engine.corpora import open_corpus
from engine.errors import ConfigurationError
from engine.ground_truth import AnnotatedImage, read_ground_truth
from engine.planning import check_is_finished, check_same_corpus
from engine.selection import check_stability
from engine.solo.training import RESULT_KEY, TrainingConfig, begin_output, check_output, name_labels
from engine.store.objects import open_objects
from engine.store.pseudo_labels import PseudoLabelStore
from engine.training.distribution import Place
from jobs.console import run_job
from jobs.flags import ClusterFlags, TrainingFlags
from jobs.progress import TrainingDisplay

if TYPE_CHECKING:
    from engine.corpora import Corpus
    from engine.solo.validation import Validation
    from engine.store.pseudo_labels import Version


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
    from actors.training import TrainingJob, run_training, size_workers
    from jobs.cluster import join_cluster, largest_node_cpus

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
    described = (output, arguments.training, name_labels(version), arguments.resume)
    if check_output(*described):
        print(f"nothing to do: {output.uri} holds the trained network")
        return
    joined = join_cluster(arguments.cluster)
    sizes = size_workers(joined.cpus, joined.gpus, largest_node_cpus(), arguments.trainer.workers)
    Place(world_size=sizes.workers).share_of(arguments.training.batch_size)
    # Only now: a mistake in the flags must not take the output.
    begin_output(*described)
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
    run_training(job, sizes, TrainingDisplay(arguments.training.steps).show)
    print(f"network: {output.uri}/{RESULT_KEY}")


def plan_held_out(
    version: Version, corpus: Corpus, truths: Sequence[AnnotatedImage], training: TrainingConfig
) -> Validation:
    """The part that is not trained on, with its truth."""
    from engine.solo.samples import list_held_out
    from engine.solo.validation import plan_validation

    held_out = list_held_out(version, training.held_out)
    validation = plan_validation(corpus, held_out, truths, training.samples.decoding)
    print(f"held out: {len(held_out)} images, {len(validation.images)} of them with ground truth")
    return validation


if __name__ == "__main__":
    run_job(TrainArguments, main)
