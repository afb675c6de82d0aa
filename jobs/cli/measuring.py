"""Label annotated images in this process and measure the labels: shared by sweep and evaluate_encoder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from engine.bounds import Bounded, Count
from engine.corpora import Corpus, CorpusKind, open_corpus
from engine.encoders import Encoder, EncoderConfig, load_encoder
from engine.errors import RunError
from engine.evaluation.protocol import EvaluationProtocol
from engine.labelling.config import LabellingConfig
from engine.sweep.feature_cache import CachedImages, FeatureCache, cache_features
from engine.types import ImageRecord
from jobs.cli.progress import ProgressDisplay

if TYPE_CHECKING:
    from engine.evaluation.matching import Match
    from engine.sweep.points import PointResult, SweepPoint, SweptImage

_MAX_LISTED = 5


@dataclass(frozen=True, kw_only=True)
class MeasuringArguments(Bounded):
    """Images, their ground truth, and how they are labelled and measured."""

    corpus: str
    """Where the images are: a folder or s3://bucket/prefix."""
    ground_truth: str
    """Their ground truth, in any form that jobs/evaluate.py takes."""
    labelling: Annotated[LabellingConfig, tyro.conf.arg(name="")] = field(default_factory=LabellingConfig)
    protocol: Annotated[EvaluationProtocol, tyro.conf.arg(name="")] = field(
        default_factory=EvaluationProtocol
    )
    corpus_kind: CorpusKind = "folder"
    """Layout of the corpus."""
    limit: Count | None = None
    """At most N images, spread evenly over the annotated ones."""
    workers: Count | None = None
    """Processes that label; by default one for each core that this process may use."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the encoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.labelling.check_has_features()

    def find_images(self) -> tuple[Corpus, list[Match[ImageRecord]]]:
        """The corpus and its annotated images, at most `limit` of them, spread evenly."""
        from engine.evaluation.ground_truth import read_ground_truth, subsample
        from engine.evaluation.matching import match_images

        corpus = open_corpus(self.corpus, self.corpus_kind)
        records = ((record, record) for record in corpus.records())
        matches = match_images(records, list(read_ground_truth(self.ground_truth)))
        return corpus, subsample(matches, self.limit)

    def load_encoder(self, config: EncoderConfig, corpus: Corpus) -> tuple[EncoderConfig, Encoder]:
        """Load an encoder, centred on the corpus, onto the device, with all cores of this process.

        Also returns the configuration without "auto".
        """
        from engine.labelling.calibration import measure_features

        resolved, measured = measure_features(corpus, config, self.labelling.decoding, self.device)
        statistics = None if measured is None else measured.statistics
        return resolved, load_encoder(resolved, self.device, count_cores(), statistics)

    def evaluate(self, points: Sequence[SweepPoint], cache: FeatureCache) -> list[PointResult]:
        """Label and measure the points in processes of one thread each, and show the progress."""
        from engine.sweep.points import evaluate_points, start_workers

        total = sum(len(point.images) for point in points)
        try:
            with (
                start_workers(self.workers or count_cores(), points[0].config) as workers,
                show_progress(total, "labelling") as progress,
            ):
                return list(evaluate_points(points, self.protocol, cache, workers, progress.show))
        except BrokenProcessPool as error:
            raise RunError(
                "a process died while labelling, perhaps out of memory: give fewer --workers"
            ) from error

    def table(self, settings: Sequence[str], rows: Sequence[tuple[Sequence[str], PointResult]]) -> Table:
        """A row for each point: its settings, under the headings `settings`, and its metrics."""
        table = Table(*settings, "box AP", "box AR", "mask AP", "mask AR", "masks", "ms")
        for column in table.columns[len(settings) :]:
            column.justify = "right"
        for cells, result in rows:
            shown = ("AP", f"AR@{self.protocol.max_detections}")
            values = [metrics[name] for metrics in (result.boxes, result.masks) for name in shown]
            table.add_row(
                *cells,
                *("-" if value is None else f"{100 * value:.2f}" for value in values),
                f"{result.masks_per_image:.2f}",
                f"{1e3 * result.cpu_s:.0f}",
            )
        table.caption = (
            f"AP and AR in percent, at most {self.protocol.max_detections} instances per image; masks and "
            "CPU ms (from features to masks) per image"
        )
        return table


def metrics_of(result: PointResult) -> dict[str, Any]:
    """A point's metrics, ready for JSON."""
    return {
        "boxes": result.boxes,
        "masks": result.masks,
        "masks_per_image": result.masks_per_image,
        "cpu_s_per_image": result.cpu_s,
    }


def count_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def show_progress(total: int, label: str) -> ProgressDisplay:
    """A display on stderr, so that tables on stdout can be kept in a file."""
    return ProgressDisplay(total, label=label, console=Console(stderr=True))


def encode_images(
    corpus: Corpus,
    matches: Sequence[Match[ImageRecord]],
    encoder: Encoder,
    config: LabellingConfig,
    cache: FeatureCache,
) -> tuple[tuple[SweptImage, ...], CachedImages]:
    """Put the features of images into the cache; images whose size differs from the truth's are left out."""
    from engine.sweep.points import SweptImage

    records = [match.item for match in matches]
    with show_progress(len(matches), f"encoding with {encoder.name}") as progress:
        cached = cache_features(corpus, records, encoder, config, cache, progress.show)
    for image_id, reason in list(cached.rejected.items())[:_MAX_LISTED]:
        print(f"cannot read {image_id!r}: {reason}")
    images = []
    for match in matches:
        image_id, truth = match.item.image_id, match.truth
        if cached.sizes.get(image_id, truth.size) == truth.size:
            images.append(SweptImage(truth=truth, key=cached.keys.get(image_id)))
        else:
            print(
                f"left out {image_id!r}: its (height, width) is {cached.sizes[image_id]}, "
                f"in the ground truth {truth.size}"
            )
    return tuple(images), cached
