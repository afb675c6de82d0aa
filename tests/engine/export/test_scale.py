"""Throughput and memory at 100,000 images."""

import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from engine.export.batch import ExportReport
from engine.export.export import ExportConfig, export_version
from engine.masks.boxes import mask_boxes_xyxy
from engine.masks.instances import Instances
from engine.masks.rle import encode_rles
from engine.objects.local import LocalObjects
from engine.report.page import build_report
from engine.store.pseudo_labels import PseudoLabelStore
from engine.store.selection import SelectionConfig
from engine.store.version_info import VersionInfo
from engine.types import ImageRecord, Outcome, Status

INFO = VersionInfo(round=0, configuration={}, weights_digest="0", parent=None, code_version="1", device="cpu")
NUM_IMAGES = 100_000


def discs(rng: np.random.Generator, count: int) -> Instances:
    """`count` masks with ragged outlines on 480 x 640 pixels."""
    rows, columns = np.mgrid[:480, :640]
    centres = rng.integers(100, 380, (count, 2))
    radii = rng.integers(10, 90, count)[:, None, None] + rng.integers(0, 3, (count, 480, 640))
    masks = (rows - centres[:, 0, None, None]) ** 2 + (columns - centres[:, 1, None, None]) ** 2 < radii**2
    return Instances(
        size=(480, 640),
        method="promerge",
        rles=encode_rles(masks),
        boxes_xyxy=mask_boxes_xyxy(masks),
        areas=masks.sum(axis=(1, 2)),
        scores=np.sort(rng.random(count, np.float32))[::-1].copy(),
        stabilities=np.full(count, np.nan, np.float32),
    )


@pytest.fixture
def large_store(tmp_path: Path) -> PseudoLabelStore:
    rng = np.random.default_rng(0)
    found = [discs(rng, 3) for _ in range(50)]
    store = PseudoLabelStore(LocalObjects(tmp_path / "store"))
    version = store.begin(INFO, "resume")
    row = Outcome(
        record=ImageRecord(image_id="", path=""),
        status=Status.LABELLED,
        height=480,
        width=640,
        sha256="0" * 64,
    )
    for shard in range(NUM_IMAGES // 1000):
        names = [f"folder/{shard:04d}/{i:06d}.jpg" for i in range(1000)]
        version.commit(
            shard,
            [
                replace(row, record=ImageRecord(image_id=name, path=name), instances=found[i % 50])
                for i, name in enumerate(names)
            ],
        )
    version.finish()
    return store


@pytest.mark.slow
def test_exporting_and_reporting_100_000_images(large_store: PseudoLabelStore, tmp_path: Path) -> None:
    memory_bytes: dict[int, int] = {}

    def note(report: ExportReport) -> None:
        memory_bytes[report.images] = psutil.Process().memory_info().rss

    config = ExportConfig(format="coco", selection=SelectionConfig(top_percent=60))
    start = time.process_time()
    export_version(large_store.version(), config, LocalObjects(tmp_path / "out"), on_progress=note)
    images_per_s = NUM_IMAGES / (time.process_time() - start)
    growth_bytes = memory_bytes[NUM_IMAGES] - memory_bytes[NUM_IMAGES // 5]
    start = time.process_time()
    page = build_report(large_store, large_store.version(), None).encode()
    report_s = time.process_time() - start
    logging.getLogger(__name__).info(
        "COCO: %.0f images/s, memory +%d MiB; page: %.1f s, %.1f MB",
        images_per_s, growth_bytes >> 20, report_s, len(page) / 1e6,
    )  # fmt: skip
    assert images_per_s >= 20_000
    assert growth_bytes < 32 << 20
    assert report_s < 60
    assert len(page) < 15_000_000
