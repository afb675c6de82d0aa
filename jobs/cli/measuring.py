"""What jobs that label annotated images share: finding them, encoding them, showing how far they are."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table

from engine.corpora import Corpus, CorpusKind, open_corpus
from engine.encoders import Encoder, EncoderConfig, load_encoder
from engine.errors import ConfigurationError, RunError
from engine.evaluation.ground_truth import read_ground_truth, subsample
from engine.evaluation.matching import Match, match_images
from engine.evaluation.protocol import EvaluationProtocol
from engine.labelling.config import LabellingConfig
from engine.sweep.feature_cache import CachedImages, FeatureCache, cache_features
from engine.sweep.points import PointResult, SweepPoint, SweptImage, evaluate_points, start_workers
from engine.types import ImageRecord

_SECONDS_BETWEEN_LINES = 10.0
_MAX_LISTED = 5


@dataclass(frozen=True, kw_only=True)
class MeasuringArguments:
    """What is measured, on which images, and with what."""

    corpus: str
    """Where the images are: a folder or s3://bucket/prefix."""
    ground_truth: str
    """What people drew in them, as for evaluate.py."""
    labelling: Annotated[LabellingConfig, tyro.conf.arg(name="")] = field(default_factory=LabellingConfig)
    protocol: Annotated[EvaluationProtocol, tyro.conf.arg(name="")] = field(
        default_factory=EvaluationProtocol
    )
    corpus_kind: CorpusKind = "folder"
    """How the corpus is laid out."""
    limit: int | None = None
    """At most so many images, spread evenly over those that are annotated."""
    workers: int | None = None
    """Processes that label; by default as many as this process may use cores."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the encoder runs."""

    def __post_init__(self) -> None:
        self.labelling.check_has_features()
        for name in ("limit", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"--{name} is at least 1, got {value}")

    def find_images(self) -> tuple[Corpus, list[Match[ImageRecord]]]:
        """The corpus and its annotated images, at most `limit` of them, spread evenly."""
        corpus = open_corpus(self.corpus, self.corpus_kind)
        records = ((record, record) for record in corpus.records())
        matches = match_images(records, list(read_ground_truth(self.ground_truth)))
        return corpus, subsample(matches, self.limit)

    def load_encoder(self, config: EncoderConfig) -> Encoder:
        """An encoder on the device, with all cores of this process."""
        return load_encoder(config, self.device, count_cores())

    def evaluate(self, points: Sequence[SweepPoint], cache: FeatureCache) -> list[PointResult]:
        """Label and measure the points in processes of one thread each, showing how far they are."""
        progress = ProgressLine("labelling", sum(len(point.images) for point in points))
        try:
            with start_workers(self.workers or count_cores(), points[0].config) as workers:
                return list(evaluate_points(points, self.protocol, cache, workers, progress.show))
        except BrokenProcessPool as error:
            raise RunError(
                "a process died while labelling, maybe for want of memory: use fewer --workers"
            ) from error

    def table(self, settings: Sequence[str], rows: Sequence[tuple[Sequence[str], PointResult]]) -> Table:
        """A row for each point: what it is, by columns named `settings`, and what it is worth."""
        table = Table(*settings, "box AP", "box AR", "mask AP", "mask AR", "masks", "ms")
        for column in table.columns[len(settings) :]:
            column.justify = "right"
        for cells, result in rows:
            shown = ("AP", f"AR@{self.protocol.max_detections}")
            values = [figures[name] for figures in (result.boxes, result.masks) for name in shown]
            table.add_row(
                *cells,
                *("-" if value is None else f"{100 * value:.2f}" for value in values),
                f"{result.masks_per_image:.2f}",
                f"{1e3 * result.cpu_s:.0f}",
            )
        table.caption = (
            f"AP and AR in percent, with {self.protocol.max_detections} instances an image; masks an image; "
            "the processor's ms an image, from features to masks"
        )
        return table


def figures_of(result: PointResult) -> dict[str, Any]:
    """What a point is worth, as JSON can hold it."""
    return {
        "boxes": result.boxes,
        "masks": result.masks,
        "masks_per_image": result.masks_per_image,
        "cpu_s_per_image": result.cpu_s,
    }


def count_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ProgressLine:
    """So many of so many are done: one line that changes on a terminal, a line from time to time in a log."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._start = self._last = time.monotonic()

    def show(self, done: int) -> None:
        now = time.monotonic()
        left_s = (now - self._start) / max(done, 1) * (self._total - done)
        line = f"{self._what}: {done} of {self._total}, about {left_s:.0f} s left"
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line if done < self._total else ''}", end="", file=sys.stderr, flush=True)
        elif now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            print(line, file=sys.stderr, flush=True)


def encode_images(
    corpus: Corpus,
    matches: Sequence[Match[ImageRecord]],
    encoder: Encoder,
    config: LabellingConfig,
    cache: FeatureCache,
) -> tuple[tuple[SweptImage, ...], CachedImages]:
    """The images with their features in the cache; those of another size than the truth's are left out."""
    progress = ProgressLine(f"encoding with {encoder.name}", len(matches))
    records = [match.item for match in matches]
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
                f"left out {image_id!r}: it is {cached.sizes[image_id]}, the ground truth says {truth.size}"
            )
    return tuple(images), cached
