#!/usr/bin/env python
"""Measure a store's labels against what people drew."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from engine.evaluation.ground_truth import read_ground_truth
from engine.evaluation.protocol import Evaluation, EvaluationProtocol, evaluate_version
from engine.objects.object_store import open_objects
from engine.store.pseudo_labels import PseudoLabelStore
from jobs.cli.console import run_job
from jobs.cli.output import check_output, write_output

_MAX_LISTED = 5


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Measure a round of labels: class-agnostic AP and AR of boxes and masks, as COCO measures them.

    Images are matched by relative path and COCO's number; where these disagree, by path. What is measured are
    the images of the ground truth that the store has; one in which nothing was found counts. The figures are
    also kept in the store.

    What --top-percent 60 would take is told by the line "top 60%": how many of those masks are right, with an
    IoU of 0.5 or more, and how many are noise. With --score stability the same is told of stability.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    store: str
    """Where the labels are: a folder or s3://bucket/prefix."""
    ground_truth: str
    """A path or s3:// URI: a .json file of COCO's format (COCO, HRSID), a folder in COCO's layout, a folder
    of id masks (*.png, 0 is background), or a folder of SA-1B's json or local tars."""
    round: int | None = None
    """The round of labels; the latest by default."""
    protocol: Annotated[EvaluationProtocol, tyro.conf.arg(name="")] = field(
        default_factory=EvaluationProtocol
    )
    output: str | None = None
    """Where to write everything as JSON, a file or s3://bucket/key: figures, protocol, recall of each image,
    scores and IoUs."""

    def __post_init__(self) -> None:
        check_output("--output", self.output)


def main(arguments: EvaluateArguments) -> None:
    version = PseudoLabelStore(open_objects(arguments.store)).version(arguments.round)
    if not version.is_finished():
        print(f"version {version.name} is not finished: this measures the shards that it has")
    truths = read_ground_truth(arguments.ground_truth)
    evaluation = evaluate_version(version, truths, arguments.protocol)
    print_evaluation(evaluation, Console())
    content = {**evaluation.to_json(), "version": version.name, "round": version.info.round}
    write_output(arguments.output, json.dumps(content, indent=1) + "\n")
    # Last, so that the figures of a store that one may only read are not lost.
    version.record_evaluation(evaluation.digest, content)
    print(f"kept in {version.name}/evaluation/{evaluation.digest}.json")


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Figures, what scores are worth, and what was measured on."""
    console.print(_figures_table(evaluation))
    console.print(_scores_table(evaluation))
    protocol = evaluation.describe_protocol()
    truth = protocol["ground_truth"]
    found_all = sum(recall.recall_50 == 1 for recall in evaluation.masks.recalls)
    found_none = sum(recall.recall_50 == 0 for recall in evaluation.masks.recalls)
    print(
        f"{truth['images']} images with {truth['objects']} objects; masks with an IoU of 0.5 or more for all "
        f"of them in {found_all} images, for none in {found_none}"
    )
    for what, names in (
        ("not in the store", evaluation.absent),
        ("of another size there", evaluation.resized),
    ):
        if names:
            shown = ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")
            print(f"left out: {len(names)} images of the ground truth that are {what}: {shown}")
    print(
        f"AP at {protocol['max_detections']} instances an image, ranked by {protocol['score']}; "
        f"ground truth {truth['digest'][:12]}"
    )


def _figures_table(evaluation: Evaluation) -> Table:
    """A row for each figure, in percent."""
    table = Table("%", "boxes", "masks")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, value in evaluation.boxes.metrics.items():
        values = (value, evaluation.masks.metrics[name])
        cells = ("-" if value is None else f"{100 * value:.1f}" for value in values)
        table.add_row(name, *cells, end_section=name == "APl")
    return table


def _scores_table(evaluation: Evaluation) -> Table:
    """Mask IoU by score, best scores first; and what is right and wrong among all masks from there up."""
    relation = evaluation.masks.score_relation
    correlation = relation.rank_correlation
    title = "no rank correlation" if correlation is None else f"rank correlation {correlation:.2f}"
    table = Table(
        evaluation.protocol.score, "masks", "mean IoU", "IoU >= 0.5", "from here up", "right : wrong",
        title=f"{evaluation.protocol.score} and IoU: {title}",
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    num_masks, taken, right = sum(part.instances for part in relation.bins), 0, 0
    for part in reversed(relation.bins):
        taken += part.instances
        right += round(part.instances * part.share_found)
        scores = f"{part.least_score:.3f} to {part.greatest_score:.3f}"
        cells = (str(part.instances), f"{part.mean_iou:.3f}", f"{part.share_found:.0%}")
        table.add_row(scores, *cells, f"top {taken / num_masks:.0%}", f"{right} : {taken - right}")
    return table


if __name__ == "__main__":
    run_job(EvaluateArguments, main)
