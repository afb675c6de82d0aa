"""Labels of the same images under many configurations, from cached features, and their evaluation."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from engine.errors import ConfigurationError
from engine.evaluation.average_precision import Metrics
from engine.evaluation.ground_truth import AnnotatedImage
from engine.evaluation.protocol import EvaluatedImage, EvaluationProtocol, evaluate
from engine.images.crops import Crop
from engine.labelling.config import LabellingConfig
from engine.labelling.labeller import warm_up
from engine.labelling.patch_labeller import label_encoded
from engine.masks.instances import Instances
from engine.store.selection import Selection, score_cut, select_instances
from engine.sweep.feature_cache import FeatureCache


@dataclass(frozen=True, kw_only=True, eq=False)
class SweptImage:
    """An annotated image and the key of its features in the cache, None if it could not be read."""

    truth: AnnotatedImage
    key: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepPoint:
    """A configuration and images whose cached features are those of its encoder."""

    config: LabellingConfig
    images: tuple[SweptImage, ...]

    def __post_init__(self) -> None:
        if self.config.tiling.tile is not None:
            raise ConfigurationError(
                "features of whole images are cached: leave tile out, or label with it and evaluate the store"
            )


@dataclass(frozen=True, kw_only=True)
class PointResult:
    """The evaluation of one configuration.

    AP and AR of boxes and masks, the protocol as JSON can hold it, masks per image, and CPU seconds per image
    without the encoder.
    """

    boxes: Metrics
    masks: Metrics
    protocol: dict[str, Any]
    masks_per_image: float
    cpu_s: float


@contextmanager
def start_workers(count: int, config: LabellingConfig) -> Iterator[Executor]:
    """Start `count` processes that label and evaluate, with one thread each."""
    # Spawned: the threads of torch and numba do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=(config,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def evaluate_points(
    points: Sequence[SweepPoint],
    protocol: EvaluationProtocol,
    cache: FeatureCache,
    workers: Executor,
    on_progress: Callable[[int], None],
) -> Iterator[PointResult]:
    """Label and evaluate all points, in order; `on_progress` gets the number of images done, of all points.

    The labels of at most two points are in memory. An image that could not be read counts as one without
    instances. Instances are selected as in a store that holds the images of the point.
    """
    done, measured = 0, None
    for point in points:
        labels = _label_all(point, cache, workers, _offset(on_progress, done))
        done += len(point.images)
        # While a point is evaluated, the next one is labelled.
        if measured is not None:
            yield measured.result()
        measured = workers.submit(_measure, point, labels, protocol)
    if measured is not None:
        yield measured.result()


def _offset(on_progress: Callable[[int], None], done_before: int) -> Callable[[int], None]:
    return lambda done: on_progress(done_before + done)


def _label_all(
    point: SweepPoint, cache: FeatureCache, workers: Executor, on_progress: Callable[[int], None]
) -> list[_Labels]:
    """The labels of a point's images, in their order."""
    futures = {
        workers.submit(_label, cache, image.key, point.config): position
        for position, image in enumerate(point.images)
    }
    labels: dict[int, _Labels] = {}
    for done, future in enumerate(as_completed(futures), start=1):
        labels[futures[future]] = future.result()
        on_progress(done)
    return [labels[position] for position in range(len(point.images))]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Labels:
    """The instances of an image and the CPU seconds that they took."""

    instances: Instances | None
    cpu_s: float


def _start_worker(config: LabellingConfig) -> None:
    torch.set_num_threads(1)
    warm_up(config)


def _label(cache: FeatureCache, key: str | None, config: LabellingConfig) -> _Labels:
    if key is None:
        return _Labels(instances=None, cpu_s=0.0)
    image = cache.read(key)
    start = time.process_time()
    crop = Crop.whole(image.resized_hwc, image.size)
    (labels,) = label_encoded([(crop, image.features_hwc)], config)
    seconds = time.process_time() - start
    if isinstance(labels, Exception):
        raise labels
    return _Labels(instances=labels.instances, cpu_s=seconds)


def _measure(point: SweepPoint, labels: Sequence[_Labels], protocol: EvaluationProtocol) -> PointResult:
    images = [
        EvaluatedImage(truth=image.truth, instances=label.instances)
        for image, label in zip(point.images, labels, strict=True)
    ]
    evaluation = evaluate(_select(images, protocol), protocol)
    num_masks = sum(len(image.instances or ()) for image in evaluation.images)
    num_read = sum(image.key is not None for image in point.images)
    return PointResult(
        boxes=evaluation.boxes.metrics,
        masks=evaluation.masks.metrics,
        protocol=evaluation.describe_protocol(),
        masks_per_image=num_masks / max(len(images), 1),
        cpu_s=sum(label.cpu_s for label in labels) / max(num_read, 1),
    )


def _select(images: Sequence[EvaluatedImage], protocol: EvaluationProtocol) -> list[EvaluatedImage]:
    config = protocol.selection
    selection = Selection(config=config)
    if config.top_percent is not None:
        scores = (image.instances.scores for image in images if image.instances is not None)
        selection = Selection(config=config, score_cut=score_cut(scores, config.top_percent))
    return [
        image
        if image.instances is None
        else replace(image, instances=select_instances(image.instances, selection))
        for image in images
    ]
