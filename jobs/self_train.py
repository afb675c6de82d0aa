#!/usr/bin/env python
"""Train a segmenter on a store's labels, label again with it, and learn from that: round after round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table

from engine.bounds import Bounded, Count
from engine.corpora import open_corpus
from engine.errors import ConfigurationError
from engine.objects.object_store import open_objects
from engine.selftraining.lineage import round_folder
from engine.selftraining.round_metrics import RoundMetrics
from engine.selftraining.rounds import SelfTrainingConfig
from engine.solo.training_output import RESULT_KEY
from engine.store.planning import check_is_finished, check_same_corpus
from engine.store.pseudo_labels import PseudoLabelStore
from engine.training.metrics import Report
from jobs.cli.console import run_job
from jobs.cli.flags import ClusterFlags, TrainingFlags
from jobs.cli.progress import ProgressDisplay

if TYPE_CHECKING:
    from actors.pipeline import Progress


@dataclass(frozen=True, kw_only=True)
class SelfTrainArguments(Bounded):
    """Self-training: SOLO learns the store's labels, its predictions are the next round's, and so on.

    One command goes from the labels of round 0 to the last round; run it again to resume after a stop. The
    store gets a version of labels per round, --output a folder with the networks of each training.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    store: str
    """Labels of round 0, and of the rounds to come: a folder or s3://bucket/prefix."""
    output: str
    """Networks, checkpoints and logs: a folder or s3://bucket/prefix."""
    corpus: str
    """Current location of the labels' images."""
    config: Annotated[SelfTrainingConfig, tyro.conf.arg(name="")] = field(default_factory=SelfTrainingConfig)
    ground_truth: str | None = None
    """Ground truth of these images, as for jobs/evaluate.py. The labels of every round are measured on it,
    and the networks on the part that --held-out keeps from training. Nothing is learned from it."""
    chunk_size: Count = 8
    """Images that are sent to a worker and labelled together."""
    trainer: Annotated[TrainingFlags, tyro.conf.arg(name="")] = field(default_factory=TrainingFlags)
    cluster: Annotated[ClusterFlags, tyro.conf.arg(name="")] = field(default_factory=ClusterFlags)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.config.training.held_out > 0 and self.ground_truth is None:
            raise ConfigurationError("--held-out leaves out images to measure on: give their --ground-truth")


def main(arguments: SelfTrainArguments) -> None:
    # Imported once the flags are known to be right, so that mistakes answer at once.
    from actors.pool import size_pool
    from actors.self_training import SelfTrainingJob, SelfTrainingSizes, run_self_training
    from actors.train_workers import size_workers
    from jobs.cli.cluster import connect, largest_node_cpus

    labels = open_objects(arguments.store)
    store = PseudoLabelStore(labels)
    version = store.version(0)
    check_is_finished(version)
    corpus = open_corpus(arguments.corpus, version.info.corpus_kind, kept_indexes=labels)
    check_same_corpus(corpus, version)
    job = SelfTrainingJob(
        store=store,
        corpus=corpus,
        output=open_objects(arguments.output),
        config=arguments.config,
        settings=arguments.trainer.run,
        cache=arguments.trainer.cache.expanduser(),
        chunk_size=arguments.chunk_size,
        ground_truth=arguments.ground_truth,
    )
    resources = connect(arguments.cluster)
    workers = arguments.trainer.workers
    sizes = SelfTrainingSizes(
        device=resources.device,
        trainers=size_workers(resources.cpus, resources.gpus, largest_node_cpus(), workers),
        labellers=size_pool(resources.cpus, resources.gpus),
    )
    metrics = run_self_training(job, sizes, ConsoleDisplay())
    Console().print(metrics_table(metrics))
    last = store.version(metrics[-1].round)
    network = f"{job.output.uri}/{round_folder(last.info.round - 1)}/{RESULT_KEY}"
    print(f"labels: {store.uri} (version {last.name}); network: {network}")


class ConsoleDisplay:
    """The display on a terminal or in a log."""

    def show_line(self, line: str) -> None:
        """Print a line."""
        print(line, flush=True)

    @contextmanager
    def show_training(self, num_steps: int) -> Iterator[Report]:
        """A function that shows the metrics of a training's steps until the context ends."""
        with ProgressDisplay(num_steps, "steps") as display:
            yield display.show_metrics

    @contextmanager
    def show_labelling(self, count_images: Callable[[], int]) -> Iterator[Callable[[Progress], None]]:
        """A function that shows progress until the context ends."""
        with ProgressDisplay(count_images) as display:
            yield display.show_labelling


def metrics_table(metrics: Sequence[RoundMetrics]) -> Table:
    """A table with a row per round."""
    table = Table(
        "round", "labelled images", "masks", "learned from", "stability", "changed", "mask AP", "box AP"
    )
    for row in metrics:
        cells = [str(value) for value in (row.round, row.labelled, row.masks, row.learned)]
        cells.append("-" if row.mean_stability is None else f"{row.mean_stability:.2f}")
        shares = (row.change, row.mask_ap, row.box_ap)
        table.add_row(*cells, *("-" if value is None else f"{value:.1%}" for value in shares))
    for column in table.columns:
        column.justify = "right"
    return table


if __name__ == "__main__":
    run_job(SelfTrainArguments, main)
