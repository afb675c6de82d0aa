#!/usr/bin/env python
"""Label the same images under a grid of configurations, and measure each against ground truth."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import tyro
from rich.console import Console

from engine.encoders import EncoderConfig
from engine.errors import ConfigurationError
from engine.images.decoding import DecodingConfig
from engine.labelling.config import LabellingConfig
from engine.objects.object_store import open_objects
from engine.sweep.axes import GridAxis, grid_points, parse_axis, with_settings
from engine.sweep.feature_cache import FeatureCache
from engine.sweep.line_plot import LinePlot, Series, draw_plot
from jobs.cli.console import run_job
from jobs.cli.measuring import MeasuringArguments, encode_images, metrics_of
from jobs.cli.output import check_output, write_output

if TYPE_CHECKING:
    from engine.sweep.points import SweepPoint, SweptImage

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SweepArguments(MeasuringArguments):
    """Label annotated images under every combination of configuration values; print AP and AR, draw a plot.

    Each encoder encodes each image once, in this process; labelling and measuring run in one process per
    core. Nothing is written to a label store.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    grid: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A field and its values, such as promerge.tau-b=0.1,0.2,0.3; repeat the flag for more fields. The first
    field is the horizontal axis of the plot."""
    cache: str | None = None
    """Keep the features for the next sweep in this folder or s3://bucket/prefix; by default they are
    discarded."""
    output: str | None = None
    """Results of all points: a .json or .csv file, or its s3://bucket/key."""
    plot: str | None = None
    """Plot of mask AP and AR: an .svg file, or its s3://bucket/key."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is not None and PurePath(self.output).suffix not in (".json", ".csv"):
            raise ConfigurationError(f"--output is a .json or a .csv file, got {self.output}")
        if self.plot is not None and PurePath(self.plot).suffix != ".svg":
            raise ConfigurationError(f"--plot is an .svg file, got {self.plot}")
        if self.plot is not None and not self.grid:
            raise ConfigurationError("--plot needs an axis: give --grid FIELD=VALUE,VALUE")
        check_output("--output", self.output)
        check_output("--plot", self.plot)


def main(arguments: SweepArguments) -> None:
    axes = [parse_axis(text, LabellingConfig) for text in arguments.grid]
    settings = grid_points(axes)
    configs = [with_settings(arguments.labelling, values) for values in settings]
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(open_objects(arguments.cache or folder))
        points = make_points(arguments, configs, cache)
        results = arguments.evaluate(points, cache)
    names = [axis.name for axis in axes]
    table_rows = [
        ([str(values[name]) for name in names], result)
        for values, result in zip(settings, results, strict=True)
    ]
    Console().print(arguments.table([name.rpartition(".")[2] for name in names], table_rows))
    print(f"{len(points[0].images)} images, {len(points)} points")
    rows = [{"settings": v, **metrics_of(result)} for v, result in zip(settings, results, strict=True)]
    if arguments.output is not None and arguments.output.endswith(".csv"):
        write_output(arguments.output, rows_as_csv(rows))
    else:
        protocol = results[0].protocol
        content = {"points": rows, "protocol": protocol, "configuration": asdict(arguments.labelling)}
        write_output(arguments.output, json.dumps(content, indent=1) + "\n")
    if arguments.plot is not None:
        write_output(arguments.plot, draw_plot(plot_of(rows, axes, arguments.protocol.max_detections)))


def make_points(
    arguments: SweepArguments, configs: Sequence[LabellingConfig], cache: FeatureCache
) -> list[SweepPoint]:
    """Each configuration with the images that its encoder has encoded; every encoder runs once."""
    from engine.sweep.points import SweepPoint

    corpus, matches = arguments.find_images()
    encoded: dict[tuple[EncoderConfig, DecodingConfig], tuple[EncoderConfig, tuple[SweptImage, ...]]] = {}
    points = []
    for config in configs:
        key = (config.encoder, config.decoding)
        if key not in encoded:
            resolved, encoder = arguments.load_encoder(config.encoder, corpus)
            images, _ = encode_images(corpus, matches, encoder, replace(config, encoder=resolved), cache)
            encoded[key] = resolved, images
        resolved, images = encoded[key]
        points.append(SweepPoint(config=replace(config, encoder=resolved), images=images))
    return points


def rows_as_csv(rows: Sequence[Row]) -> str:
    """CSV with a line for each point: its settings and its metrics."""
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
    writer = csv.DictWriter(sink, fieldnames=list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return sink.getvalue()


def plot_of(rows: Sequence[Row], axes: Sequence[GridAxis], max_detections: int) -> LinePlot:
    """Mask AP and AR in percent over the first axis, a line for each combination of the other axes."""
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
