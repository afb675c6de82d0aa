#!/usr/bin/env python
"""Train an encoder on images without labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from engine.corpora import FolderCorpus
from engine.errors import ConfigurationError
from engine.objects.object_store import open_objects
from engine.pretraining.card import CARD_KEY, ENCODER_KEY
from engine.pretraining.config import PretrainingConfig
from engine.store.planning import check_has_images
from engine.training.metrics import Metrics
from engine.training.output import check_output, create_output
from jobs.cli.console import run_job
from jobs.cli.flags import ClusterFlags, TrainingFlags

# Below this spread all keys are alike, and above this entropy all targets of the teacher are.
_COLLAPSED_SPREAD = 0.05
_COLLAPSED_ENTROPY = 0.999


@dataclass(frozen=True, kw_only=True)
class PretrainingArguments:
    """Train an encoder on images without labels; the result is a file for --weights with its model card.

    Start from scratch, or from given weights to adapt them to a new domain. --resume goes on after a stop.
    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    corpus: tuple[str, ...]
    """The images: one or more of a folder, s3://bucket/prefix, skimage:."""
    output: str
    """Checkpoints, log, encoder.safetensors and card.md: a folder or s3://bucket/prefix."""
    training: Annotated[PretrainingConfig, tyro.conf.arg(name="")] = field(default_factory=PretrainingConfig)
    resume: bool = False
    """Resume the run in --output from its last checkpoint."""
    trainer: Annotated[TrainingFlags, tyro.conf.arg(name="")] = field(default_factory=TrainingFlags)
    cluster: Annotated[ClusterFlags, tyro.conf.arg(name="")] = field(default_factory=ClusterFlags)

    def __post_init__(self) -> None:
        if not self.corpus:
            raise ConfigurationError("--corpus needs at least one folder, s3://bucket/prefix or skimage:")


def main(arguments: PretrainingArguments) -> None:
    # Imported once the flags are known to be right, so that mistakes answer at once.
    from actors.train_workers import run_workers, size_workers
    from actors.training_jobs import PretrainingJob
    from engine.pretraining.run import check_training, describe_pretraining
    from jobs.cli.cluster import connect, largest_node_cpus

    output = open_objects(arguments.output)
    corpora = tuple(FolderCorpus.open(uri) for uri in arguments.corpus)
    for corpus in corpora:
        check_has_images(corpus)
    results = f"encoder: {output.uri}/{ENCODER_KEY}, its card: {CARD_KEY}"
    description = describe_pretraining(arguments.training, corpora)
    if check_output(output, description, arguments.resume):
        print(f"nothing to do; {results}")
        return
    resources = connect(arguments.cluster)
    sizes = size_workers(resources.cpus, resources.gpus, largest_node_cpus(), arguments.trainer.workers)
    check_training(arguments.training, sizes.workers)
    # Only now: a mistake in the flags must not claim the output.
    create_output(output, description, arguments.resume)
    job = PretrainingJob(
        corpora=corpora,
        output=output,
        config=arguments.training,
        settings=arguments.trainer.run,
        cache=arguments.trainer.cache.expanduser(),
    )
    print(f"pre-training with {sizes.workers} worker(s) of {sizes.cpus_each} CPUs", flush=True)
    run_workers(job, sizes, show_metrics)
    print(results)


def show_metrics(step: int, metrics: Metrics) -> None:
    """Print one line for people, with a warning if the network has collapsed."""
    parts = [
        f"step {step}",
        f"{metrics['progress']:.0%}",
        f"epoch {metrics['epoch']:.1f}",
        f"loss {metrics['loss']:.3f}",
        f"regions found {metrics['region_accuracy']:.0%}",
        f"spread {metrics['key_spread']:.2f}",
        f"{metrics['images_per_s']:.1f} images/s",
    ]
    if metrics["key_spread"] < _COLLAPSED_SPREAD or metrics["teacher_entropy"] > _COLLAPSED_ENTROPY:
        parts.append("warning: collapsed, lower optimiser.learning-rate")
    print(", ".join(parts), flush=True)


if __name__ == "__main__":
    run_job(PretrainingArguments, main)
