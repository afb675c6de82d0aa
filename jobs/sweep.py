#!/usr/bin/env python
"""Label the same images under a grid of configurations, and measure each against what people drew."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from engine.corpora import CorpusKind, open_corpus
from engine.encoders import EncoderConfig, load_encoder
from engine.errors import ConfigurationError
from engine.evaluation import EvaluationProtocol
from engine.feature_cache import FeatureCache
from engine.grid import GridAxis, Value, grid_points, parse_axis, with_settings
from engine.labelling import LabellingConfig
from engine.line_plot import LinePlot, Series, draw_plot
from engine.store.objects import open_objects
from engine.sweep import PointResult, SweepPoint, SweptImage, evaluate_points, start_workers
from jobs.console import run_job
from jobs.measuring import ProgressLine, annotated_images, encode_images

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SweepArguments:
    """Label annotated images under every combination of some fields' values; print AP and AR, draw a plot.

    Each image is encoded once for each encoder, in this process; labelling and measuring fill the processor's
    cores with processes of one thread each. Nothing is written to a label store.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    corpus: str
    """Where the images are: a folder or s3://bucket/prefix."""
    ground_truth: str
    """What people drew in them, as for evaluate.py."""
    grid: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A field and its values, such as promerge.tau-b=0.1,0.2,0.3; give it again for further fields. The first
    is the horizontal axis of the plot."""
    labelling: Annotated[LabellingConfig, tyro.conf.arg(name="")] = field(default_factory=LabellingConfig)
    protocol: Annotated[EvaluationProtocol, tyro.conf.arg(name="")] = field(
        default_factory=EvaluationProtocol
    )
    corpus_kind: CorpusKind = "folder"
    """How the corpus is laid out."""
    limit: int | None = None
    """At most so many images, spread evenly over those that are annotated."""
    cache: str | None = None
    """Where features are kept for the next sweep: a folder or s3://bucket/prefix. By default they go."""
    workers: int | None = None
    """Processes that label; by default as many as this process may use cores."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the encoder runs."""
    output: Path | None = None
    """Where to write all figures: a .json or a .csv file."""
    plot: Path | None = None
    """Where to draw AP and AR of masks: an .svg file."""

    def __post_init__(self) -> None:
        if self.output is not None and self.output.suffix not in (".json", ".csv"):
            raise ConfigurationError(f"--output is a .json or a .csv file, got {self.output}")
        if self.plot is not None and self.plot.suffix != ".svg":
            raise ConfigurationError(f"--plot is an .svg file, got {self.plot}")
        for name in ("limit", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"--{name} is at least 1, got {value}")


def main(arguments: SweepArguments) -> None:
    axes = [parse_axis(text, LabellingConfig) for text in arguments.grid]
    settings = grid_points(axes)
    configs = [with_settings(arguments.labelling, values) for values in settings]
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(open_objects(arguments.cache or folder))
        points = make_points(arguments, configs, cache)
        rows = measure_points(points, settings, arguments, cache)
    Console().print(_table(rows, axes, arguments.protocol.max_detections))
    print(
        f"{len(points[0].images)} images; AP and AR in percent, with {arguments.protocol.max_detections} "
        "instances an image; masks and the processor's ms, from features to masks, per image"
    )
    if arguments.output is not None:
        write_rows(rows, points, arguments)
    if arguments.plot is not None and axes:
        arguments.plot.write_text(draw_plot(plot_of(rows, axes, arguments.protocol.max_detections)))


def make_points(
    arguments: SweepArguments, configs: Sequence[LabellingConfig], cache: FeatureCache
) -> list[SweepPoint]:
    """Each configuration with the images as its encoder sees them; every encoder runs once."""
    corpus = open_corpus(arguments.corpus, arguments.corpus_kind)
    matches = annotated_images(corpus, arguments.ground_truth, arguments.limit)
    encoded: dict[tuple[EncoderConfig, Any], tuple[SweptImage, ...]] = {}
    points = []
    for config in configs:
        key = (config.encoder, config.decoding)
        if key not in encoded:
            encoder = load_encoder(config.encoder, arguments.device, count_cores())
            encoded[key], _ = encode_images(corpus, matches, encoder, config, cache)
        points.append(SweepPoint(config=config, images=encoded[key]))
    return points


def count_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure_points(
    points: Sequence[SweepPoint],
    settings: Sequence[dict[str, Value]],
    arguments: SweepArguments,
    cache: FeatureCache,
) -> list[Row]:
    """Figures of each point, in order."""
    progress = ProgressLine("labelling", sum(len(point.images) for point in points))
    with start_workers(arguments.workers or count_cores(), points[0].config) as workers:
        results = evaluate_points(points, arguments.protocol, cache, workers, progress.show)
        return [_row(values, result) for values, result in zip(settings, results, strict=True)]


def _row(settings: dict[str, Value], result: PointResult) -> Row:
    evaluation = result.evaluation
    return {
        "settings": settings,
        "boxes": evaluation.boxes.figures,
        "masks": evaluation.masks.figures,
        "masks_per_image": result.masks_per_image,
        "cpu_s_per_image": result.cpu_s,
        "rank_correlation": evaluation.masks.score_relation.rank_correlation,
        "protocol": evaluation.describe_protocol(),
    }


def _table(rows: Sequence[Row], axes: Sequence[GridAxis], max_detections: int) -> Table:
    """Settings, AP and AR of boxes and masks in percent, masks and milliseconds per image."""
    shown = [(kind, name) for kind in ("boxes", "masks") for name in ("AP", f"AR@{max_detections}")]
    headings = ("box AP", "box AR", "mask AP", "mask AR", "masks", "ms")
    table = Table(*(axis.name.rpartition(".")[2] for axis in axes), *headings)
    for column in table.columns[len(axes) :]:
        column.justify = "right"
    for row in rows:
        values = (row[kind][name] for kind, name in shown)
        table.add_row(
            *(str(row["settings"][axis.name]) for axis in axes),
            *("-" if value is None else f"{100 * value:.2f}" for value in values),
            f"{row['masks_per_image']:.2f}",
            f"{1e3 * row['cpu_s_per_image']:.0f}",
        )
    return table


def write_rows(rows: Sequence[Row], points: Sequence[SweepPoint], arguments: SweepArguments) -> None:
    """All figures: nested as JSON, flat as CSV."""
    assert arguments.output is not None
    if arguments.output.suffix == ".json":
        content = {
            "configuration": asdict(arguments.labelling),
            "images": len(points[0].images),
            "points": rows,
        }
        arguments.output.write_text(json.dumps(content, indent=1) + "\n")
        return
    flat = [
        {
            **row["settings"],
            **{f"{kind} {name}": value for kind in ("boxes", "masks") for name, value in row[kind].items()},
            "masks/image": row["masks_per_image"],
            "CPU s/image": row["cpu_s_per_image"],
        }
        for row in rows
    ]
    sink = io.StringIO()
    writer = csv.DictWriter(sink, fieldnames=list(flat[0]))
    writer.writeheader()
    writer.writerows(flat)
    arguments.output.write_text(sink.getvalue())


def plot_of(rows: Sequence[Row], axes: Sequence[GridAxis], max_detections: int) -> LinePlot:
    """AP and AR of masks in percent over the first axis, a line for each combination of the others."""
    first, *others = axes
    recall = f"AR@{max_detections}"
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in first.values)
    series = []
    for others_settings in grid_points(others):
        line = [row for row in rows if others_settings.items() <= row["settings"].items()]
        values = tuple(
            tuple(None if row["masks"][name] is None else 100 * row["masks"][name] for row in line)
            for name in ("AP", recall)
        )
        name = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in others_settings.items())
        series.append(Series(name=name or "masks", values=values))
    return LinePlot(
        x_title=first.name,
        positions=tuple(float(v) if is_number else str(v) for v in first.values),
        titles=("mask AP, %", f"mask {recall}, %"),
        series=tuple(series),
    )


if __name__ == "__main__":
    run_job(SweepArguments, main)
