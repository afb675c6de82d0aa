#!/usr/bin/env python
"""Measure a store's labels against ground truth."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from engine.evaluation.protocol import Evaluation, EvaluationProtocol
from engine.objects.object_store import open_objects
from engine.store.pseudo_labels import PseudoLabelStore
from jobs.cli.console import run_job
from jobs.cli.output import check_output, write_output

_MAX_LISTED = 5


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Measure labels against ground truth: class-agnostic AP and AR of boxes and masks, as COCO defines them.

    Images are matched by relative path and COCO id; if these disagree, the path decides. The images measured
    are those that both the ground truth and the store have, including images without a mask. The metrics are
    also kept in the store.

    The second table tells what a threshold is worth: its row "top 60%" counts right masks (IoU >= 0.5) and
    wrong ones among those that --top-percent 60 would take. With --score stability it does so for stability.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    store: str
    """Label store: a folder or s3://bucket/prefix."""
    ground_truth: str
    """Ground truth, a path or s3:// URI: a .json file in COCO format (COCO, HRSID), a folder in COCO layout,
    a folder of id masks (*.png, 0 is background), or a folder of SA-1B json files or local tars."""
    round: int | None = None
    """Round of labels; the latest by default."""
    protocol: Annotated[EvaluationProtocol, tyro.conf.arg(name="")] = field(
        default_factory=EvaluationProtocol
    )
    output: str | None = None
    """JSON file of all results, a path or s3://bucket/key: metrics, protocol, recall of each image, scores
    and IoUs."""

    def __post_init__(self) -> None:
        check_output("--output", self.output)


def main(arguments: EvaluateArguments) -> None:
    # Imported late, so that --help answers at once.
    from engine.evaluation.ground_truth import read_ground_truth
    from engine.evaluation.protocol import evaluate_version

    version = PseudoLabelStore(open_objects(arguments.store)).version(arguments.round)
    if not version.is_finished():
        print(f"version {version.name} is not finished: only its committed shards are measured")
    truths = read_ground_truth(arguments.ground_truth)
    evaluation = evaluate_version(version, truths, arguments.protocol)
    print_evaluation(evaluation, Console())
    content = {**evaluation.to_json(), "version": version.name, "round": version.info.round}
    write_output(arguments.output, json.dumps(content, indent=1) + "\n")
    # Last, so that the output exists even if the store is read-only.
    version.record_evaluation(evaluation.digest, content)
    print(f"kept in {version.name}/evaluation/{evaluation.digest}.json")


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print metrics, the relation of score and IoU, and the images measured."""
    console.print(_metrics_table(evaluation))
    console.print(_scores_table(evaluation))
    protocol = evaluation.describe_protocol()
    truth = protocol["ground_truth"]
    found_all = sum(recall.recall_50 == 1 for recall in evaluation.masks.recalls)
    found_none = sum(recall.recall_50 == 0 for recall in evaluation.masks.recalls)
    print(
        f"{truth['images']} images with {truth['objects']} objects; all objects found (mask IoU >= 0.5) in "
        f"{found_all} images, none in {found_none}"
    )
    for what, names in (
        ("not in the store", evaluation.absent),
        ("of another size in the store", evaluation.resized),
    ):
        if names:
            shown = ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")
            print(f"left out: {len(names)} images of the ground truth that are {what}: {shown}")
    print(
        f"AP at {protocol['max_detections']} instances per image, ranked by {protocol['score']}; "
        f"ground truth {truth['digest'][:12]}"
    )


def _metrics_table(evaluation: Evaluation) -> Table:
    """A row for each metric, in percent."""
    table = Table("%", "boxes", "masks")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, value in evaluation.boxes.metrics.items():
        values = (value, evaluation.masks.metrics[name])
        cells = ("-" if value is None else f"{100 * value:.1f}" for value in values)
        table.add_row(name, *cells, end_section=name == "APl")
    return table


def _scores_table(evaluation: Evaluation) -> Table:
    """Mask IoU by score, best scores first, and right and wrong masks from each row up."""
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
