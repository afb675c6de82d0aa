"""Canvases, labels and a training configuration for a network whose steps take milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from engine.corpora import FolderCorpus
from engine.objects.local import LocalObjects
from engine.objects.memory import MemoryObjects
from engine.solo.batch import Canvas
from engine.solo.labelled_images import list_images
from engine.solo.samples import SampleConfig, SampleMaker
from engine.solo.training_config import TrainingConfig
from engine.store.pseudo_labels import PseudoLabelStore
from engine.store.selection import SelectionConfig
from engine.superpixels import SuperpixelConfig
from engine.superpixels.hierarchy import number_by_first_pixel
from engine.training.schedule import OptimiserConfig


@pytest.fixture
def make_canvas() -> Callable[..., Canvas]:
    """`make_canvas(seed, boxes)` is a 64 x 64 canvas with bright boxes; its last 8 rows are off the image."""

    def make(seed: int, boxes_xyxy: list[tuple[int, int, int, int]]) -> Canvas:
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 60, (64, 64, 3)).astype(np.uint8)
        masks = np.zeros((len(boxes_xyxy), 64, 64), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes_xyxy, strict=True):
            mask[y0:y1, x0:x1] = True
            image[mask] = rng.integers(120, 255, 3)
        # Squares of 8 x 8 pixels, divided by the boxes.
        board = np.arange(64)[:, None] // 8 * 8 + np.arange(64)[None] // 8
        labels = number_by_first_pixel(board + 64 * (image.max(axis=2) > 100))
        image[56:], masks[:, 56:] = 0, False
        labels[56:] = -1
        labels[:56] = number_by_first_pixel(labels[:56])
        weights = np.linspace(0.25, 1, len(masks), dtype=np.float32)
        return Canvas(image_hwc=image, shown_hwc=image, masks=masks, weights=weights, superpixels=labels)

    return make


@pytest.fixture
def labelled_folder(labelled_discs):
    """The corpus and the version of `labelled_discs`."""
    images, store = labelled_discs
    return FolderCorpus.open(str(images)), PseudoLabelStore(LocalObjects(store)).version()


@pytest.fixture
def tiny_training(tiny_solo):
    return TrainingConfig(
        steps=6,
        batch_size=2,
        solo=tiny_solo,
        optimiser=OptimiserConfig(kind="adamw", learning_rate=2e-3, warmup_steps=2, schedule="cosine"),
        samples=SampleConfig(superpixels=SuperpixelConfig(num_segments=40)),
        snapshots=2,
    )


@pytest.fixture
def make_maker(labelled_folder, tmp_path):
    corpus, version = labelled_folder

    def make(config, **selection):
        images = list_images(version, SelectionConfig(**selection), config.keep_empty)
        return SampleMaker(images, corpus, tmp_path / "cache", config.sample_task)

    return make


@pytest.fixture
def stable_version(labelled_folder):
    """The version of `labelled_discs` with stabilities 2, 2.5, 3 and so on of successive discs."""
    _, version = labelled_folder
    stabilities = iter(np.arange(2, 5, 0.5, dtype=np.float32))
    outcomes = [
        outcome
        if outcome.instances is None
        else replace(outcome, instances=replace(outcome.instances, stabilities=next(stabilities)[None]))
        for outcome in version.outcomes()
    ]
    measured = PseudoLabelStore(MemoryObjects()).begin(version.info, "resume")
    measured.commit(0, outcomes)
    return measured
