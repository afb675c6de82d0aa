#!/usr/bin/env python
"""Compare losses of a second self-training round, which learns the predictions of the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Literal

import tyro

from engine.errors import ConfigurationError
from engine.evaluation.ground_truth import AnnotatedImage, read_ground_truth
from engine.evaluation.protocol import EvaluationProtocol, evaluate_version
from engine.images.decoding import decode_image
from engine.labelling.outcomes import Labels, make_outcome
from engine.objects.local import LocalObjects
from engine.objects.memory import MemoryObjects
from engine.objects.object_store import ObjectStore
from engine.selftraining.rounds import LaterLoss, LaterRoundsConfig, SelfTrainingConfig
from engine.solo.stability import with_stability
from engine.solo.training_config import TrainingConfig
from engine.solo.training_output import RESULT_KEY, snapshot_key
from engine.store.pseudo_labels import Version
from engine.types import Outcome, Reason
from jobs.cli.console import run_job
from jobs.studies.compare_mask_losses import (
    ComparisonArguments,
    Results,
    make_run,
    open_images,
    print_means,
    record_of,
    seeded,
    small_training,
    split_images,
    store_coarse_masks,
    store_version,
    train_and_measure,
    write_results,
)
from jobs.studies.corrupt_labels import Fault, add_label_noise


@dataclass(frozen=True, kw_only=True)
class CompareRoundsArguments(ComparisonArguments):
    """Compare losses of a second round on equal images, labels, first networks and steps.

    Round 0 learns coarse masks with the superpixel loss, as in jobs/studies/compare_mask_losses.py; round 1
    learns what its networks predict in the same images. Metrics are measured on clean masks. A run that was
    stopped continues from its last checkpoint.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    losses: tuple[LaterLoss, ...] = ("pixel", "adaptive")
    """Losses to compare: pixel (all pixels alike), adaptive (weighted by stability and boundary distance),
    superpixel (as in round 0)."""
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: replace(small_training(), snapshots=4)
    )
    """All other settings of the trainings."""
    later: LaterRoundsConfig = field(default_factory=LaterRoundsConfig)
    """Settings of the second round."""
    fault: Literal[Fault, "none"] = "none"
    """Fault to add to the labels of round 0, as in jobs/studies/corrupt_labels.py."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.losses:
            raise ConfigurationError("--losses needs at least one value")

    def config(self, seed: int, loss: LaterLoss) -> SelfTrainingConfig:
        """The configuration of two rounds whose second has this loss."""
        return SelfTrainingConfig(training=seeded(self.training, seed), later=replace(self.later, loss=loss))


def main(arguments: CompareRoundsArguments) -> None:
    truths = list(read_ground_truth(str(arguments.data)))
    results: Results = {name: [] for name in ("round 0", *arguments.losses)}
    for seed in arguments.seeds:
        trained, held_out = split_images(truths, seed, arguments)
        objects = LocalObjects(arguments.output / f"seed-{seed}" / "labels")
        coarse = store_labels(objects, trained, arguments, seed)
        config = arguments.config(seed, arguments.losses[0]).training_of(0)
        first = make_run(f"seed-{seed}/round-000", config, held_out, arguments)
        results["round 0"].append(train_and_measure(first, coarse, arguments))
        predicted = store_predictions(objects, trained, first.output, coarse, arguments)
        relate_stability(predicted, trained)
        for loss in arguments.losses:
            config = arguments.config(seed, loss).training_of(1)
            run = make_run(f"seed-{seed}/round-001-{loss}", config, held_out, arguments)
            if arguments.later.begin == "previous":
                run = replace(run, init_from=f"{first.output.uri}/{RESULT_KEY}")
            results[loss].append(train_and_measure(run, predicted, arguments))
        for name, rows in results.items():
            print(f"seed {seed}, {name}: {rows[-1]}", flush=True)
    write_results(results, arguments)
    print_means(results)


def store_labels(
    objects: ObjectStore, truths: Sequence[AnnotatedImage], arguments: CompareRoundsArguments, seed: int
) -> Version:
    """Store the labels of round 0: coarse masks, with a fault if one is asked for."""
    if arguments.fault == "none":
        return store_coarse_masks(objects, truths, arguments, seed)
    coarse = store_coarse_masks(MemoryObjects(), truths, arguments, seed)
    noisy = [add_label_noise(outcome, arguments.fault) for outcome in coarse.outcomes()]
    return store_version(objects, noisy, {"fault": arguments.fault, "from": coarse.name}, None)


def store_predictions(
    objects: ObjectStore,
    truths: Sequence[AnnotatedImage],
    networks: ObjectStore,
    parent: Version,
    arguments: CompareRoundsArguments,
) -> Version:
    """Store the predictions of a training's networks, with their stability, as the next round's labels."""
    import torch

    from engine.solo.inference import find_instances
    from engine.solo.weights import load_network

    config = arguments.training
    uris = [f"{networks.uri}/{snapshot_key(step)}" for step in config.snapshot_steps]
    loaded = [load_network(uri, torch.device("cpu")) for uri in uris]
    corpus = open_images(arguments)
    outcomes: list[Outcome] = []
    for truth in truths:
        image = decode_image(corpus.read(record_of(truth)), config.samples.decoding)
        *earlier, last = (find_instances(network, [image], solo)[0] for network, solo, _ in loaded)
        found = with_stability(last, earlier)
        labels = Labels(instances=found) if len(found) > 0 else Labels(reason=Reason.NO_FOREGROUND)
        outcomes.append(make_outcome(record_of(truth), truth.size, "", labels))
    settings = {"training": asdict(config), "networks": [digest for *_, digest in loaded]}
    return store_version(objects, outcomes, settings, parent)


def relate_stability(version: Version, truths: Sequence[AnnotatedImage]) -> None:
    """Print and record how scores and stabilities relate to IoU with the clean masks."""
    for by in ("score", "stability"):
        evaluation = evaluate_version(version, truths, EvaluationProtocol(score=by))
        version.record_evaluation(evaluation.digest, evaluation.to_json())
        relation = evaluation.masks.score_relation
        print(f"{version.name}: rank correlation of {by} and IoU {relation.rank_correlation}", flush=True)
        for part in relation.bins:
            print(
                f"  {by} up to {part.greatest_score:.3f}: {part.instances} masks, mean IoU "
                f"{part.mean_iou:.3f}, {part.share_found:.0%} with 0.5 or more"
            )


if __name__ == "__main__":
    run_job(CompareRoundsArguments, main)
