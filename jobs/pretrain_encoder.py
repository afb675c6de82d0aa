#!/usr/bin/env python
"""Train an encoder on images without labels."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from engine.corpora import FolderCorpus
from engine.errors import ConfigurationError
from engine.objects.object_store import open_objects
from engine.pretraining.card import CARD_KEY, ENCODER_KEY
from engine.pretraining.config import PretrainingConfig
from engine.pretraining.run import RunSettings, check_output, check_training, digest_images
from engine.store.planning import check_has_images
from jobs.cli.console import run_job
from jobs.cli.flags import ClusterFlags

# Below this spread all keys point the same way, and beyond these entropies the teacher says nothing.
_COLLAPSED_SPREAD = 0.05
_COLLAPSED_ENTROPY = 0.999


@dataclass(frozen=True, kw_only=True)
class PretrainingArguments:
    """Train an encoder on images without labels: a file for --weights, its card, and the figures on the way.

    From scratch, or on from given weights to bring them to a new domain. After a stop, --resume goes on.
    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    corpus: tuple[str, ...]
    """Where the images are: one or more of a folder, s3://bucket/prefix, skimage:."""
    output: str
    """Where encoder.safetensors, card.md, losses.jsonl and the checkpoint go: a folder or s3://bucket/prefix."""
    training: Annotated[PretrainingConfig, tyro.conf.arg(name="")] = field(default_factory=PretrainingConfig)
    cache: Path = Path(tempfile.gettempdir()) / "maskmill-images"
    """Folder on the workers' local disks for shrunk images; it may be kept for the next run."""
    resume: bool = False
    """Go on with the run in --output."""
    limit: int | None = None
    """Train on the first so many images only."""
    workers: int | None = None
    """Processes that train together; by default one for each GPU of the cluster, or one without."""
    loaders: int | None = None
    """Processes beside each worker that decode images and cut views; by default what CPUs are left."""
    log_every: int = 10
    """Steps between two lines of losses.jsonl."""
    checkpoint_minutes: float = 5.0
    """Time between two checkpoints."""
    cluster: Annotated[ClusterFlags, tyro.conf.arg(name="")] = field(default_factory=ClusterFlags)

    def __post_init__(self) -> None:
        if not self.corpus:
            raise ConfigurationError("--corpus needs at least one folder, s3://bucket/prefix or skimage:")
        for name, least in (("workers", 1), ("loaders", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigurationError(f"--{name} is at least {least}, got {value}")

    def settings(self, loaders: int) -> RunSettings:
        """What the run does beside learning."""
        return RunSettings(
            cache=self.cache,
            processes=loaders,
            log_every=self.log_every,
            checkpoint_minutes=self.checkpoint_minutes,
            limit=self.limit,
        )


def main(arguments: PretrainingArguments) -> None:
    output = open_objects(arguments.output)
    corpora = tuple(FolderCorpus.open(uri) for uri in arguments.corpus)
    for corpus in corpora:
        check_has_images(corpus)
    images = digest_images(corpora, arguments.limit)
    if check_output(output, arguments.training, images, arguments.resume):
        print(f"nothing to do: {output.uri} holds this encoder already")
    else:
        train(corpora, arguments)
    print(f"encoder: {output.uri}/{ENCODER_KEY}, its card: {CARD_KEY}")


def train(corpora: tuple[FolderCorpus, ...], arguments: PretrainingArguments) -> None:
    """Train on the cluster, in view of a person."""
    # Imported once the flags are known to be right, so that --help and mistakes answer at once.
    import ray

    from actors.pretraining import PretrainingRun, Workers, run_pretraining
    from jobs.cli.cluster import connect

    joined = connect(arguments.cluster)
    count = arguments.workers or (max(1, math.floor(joined.gpus)) if joined.device == "cuda" else 1)
    cpus_each = share_cpus(joined.cpus, count)
    check_training(arguments.training, count)
    loaders = arguments.loaders if arguments.loaders is not None else math.floor(cpus_each) - 1
    with tempfile.TemporaryDirectory() as folder:
        # Ray keeps notes of the run where all nodes reach them; a single node needs no shared place.
        storage = arguments.output if len(ray.nodes()) > 1 else folder
        run_pretraining(
            PretrainingRun(
                corpora=corpora,
                output=open_objects(arguments.output),
                config=arguments.training,
                settings=arguments.settings(loaders),
            ),
            Workers(count=count, cpus_each=cpus_each, uses_gpus=joined.device == "cuda", storage=storage),
            show_line,
        )


def share_cpus(num_cpus: float, num_workers: int) -> float:
    """CPUs for each worker, with one left for Ray. Raises ConfigurationError for less than one each.

    >>> share_cpus(16, 1), share_cpus(2, 1)
    (15, 1)
    """
    cpus_each = math.floor((num_cpus - 1) / num_workers) if num_cpus > num_workers else num_cpus / num_workers
    if cpus_each < 1:
        raise ConfigurationError(
            f"{num_workers} workers need as many CPUs and {num_cpus:g} are free: give fewer --workers"
        )
    return cpus_each


def show_line(line: str) -> None:
    """One line of figures for people, with a warning where the network has collapsed."""
    figures = json.loads(line)
    parts = [
        f"step {figures['step']}",
        f"{figures['progress']:.0%}",
        f"epoch {figures['epoch']:.1f}",
        f"loss {figures['loss']:.3f}",
        f"regions found {figures['region_accuracy']:.0%}",
        f"spread {figures['key_spread']:.2f}",
        f"{figures['images_per_s']:.1f} images/s",
    ]
    if figures["key_spread"] < _COLLAPSED_SPREAD or figures["teacher_entropy"] > _COLLAPSED_ENTROPY:
        parts.append("warning: collapsed, lower optimiser.learning-rate")
    print(", ".join(parts), flush=True)


if __name__ == "__main__":
    run_job(PretrainingArguments, main)
