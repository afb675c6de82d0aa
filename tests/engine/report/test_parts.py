"""Parts of the report: histograms, charts, statistics and picked images."""

import math

import numpy as np
import pytest

from engine.images.decoding import DecodingConfig
from engine.masks.instances import Instances
from engine.masks.rle import encode_rles
from engine.objects.memory import MemoryObjects
from engine.report.charts import bar_chart, line_chart
from engine.report.histogram import Histogram, count_edges, share_edges
from engine.report.pictures import PictureMaker, PicturePicker
from engine.report.statistics import read_statistics
from engine.store.columns import ShardColumns
from engine.store.pseudo_labels import PseudoLabelStore, Version
from engine.store.version_info import VersionInfo
from engine.types import ImageRecord, Outcome, Reason, Status

INFO = VersionInfo(round=1, configuration={}, weights_digest="0", parent=None, code_version="1", device="cpu")


def labelled(name: str, boxes_xyxy: list[list[int]], scores: list[float], stability: float) -> Outcome:
    """An image of 100 x 200 pixels whose masks fill their boxes."""
    boxes = np.array(boxes_xyxy, np.int32)
    masks = np.zeros((len(boxes), 100, 200), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes_xyxy, strict=True):
        mask[y0:y1, x0:x1] = True
    instances = Instances(
        size=(100, 200),
        method="promerge",
        rles=encode_rles(masks),
        boxes_xyxy=boxes,
        areas=((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).astype(np.int64),
        scores=np.array(scores, np.float32),
        stabilities=np.full(len(boxes), stability, np.float32),
    )
    record = ImageRecord(image_id=name, path=name)
    return Outcome(
        record=record, status=Status.LABELLED, height=100, width=200, sha256="0", instances=instances
    )


def version_of(*rows: list[Outcome]) -> Version:
    version = PseudoLabelStore(MemoryObjects()).begin(INFO, "resume")
    for number, shard in enumerate(rows):
        version.commit(number, shard)
    return version


def shards(*rows: list[Outcome]) -> list[ShardColumns]:
    return list(version_of(*rows).columns())


SMALL, MIDDLE, OVERFLOWING, NARROW, HALF = (
    [10, 10, 20, 15], [20, 20, 100, 80], [0, 0, 200, 60], [0, 0, 200, 20], [0, 0, 199, 51]
)  # fmt: skip


def test_statistics_count_images_and_masks() -> None:
    broken = ImageRecord(image_id="broken", path="broken")
    rows = [
        labelled("a", [MIDDLE, SMALL], [0.5, 0.25], math.nan),
        Outcome(record=broken, status=Status.REJECTED, reason=Reason.TRUNCATED, detail="short"),
    ]
    statistics = read_statistics(version_of(rows))
    assert (statistics.images, statistics.masks, statistics.labelled_share) == (2, 2, 0.5)
    assert (statistics.processed_images, statistics.labelled_images, statistics.mean_masks) == (1, 1, 2)
    assert statistics.reasons == {"truncated": 1}
    assert [example.detail for example in statistics.examples["truncated"]] == ["short"]
    assert statistics.is_rejection("truncated")
    assert not statistics.is_rejection("no_background")
    assert [(bar.start, bar.count) for bar in statistics.masks_per_image.bars()] == [(1.5, 1)]
    assert statistics.stabilities.total == 0


def test_statistics_count_masks_by_sides_and_area() -> None:
    first = [labelled("a", [OVERFLOWING, NARROW, HALF, MIDDLE], [0.5] * 4, math.nan)]
    second = [labelled("b", [MIDDLE], [0.5], math.nan)]
    statistics = read_statistics(version_of(first, second))
    assert (statistics.overflowing_masks, statistics.background_masks) == (1, 3)
    assert statistics.single_mask_images == 1


def test_statistics_of_an_empty_version() -> None:
    statistics = read_statistics(version_of())
    assert (statistics.images, statistics.labelled_share, statistics.mean_masks) == (0, 0, 0)


def test_the_best_and_the_worst_images_of_all_shards_are_picked() -> None:
    scores = np.linspace(0.1, 0.9, 40).round(3)
    rows = [labelled(f"{i:02d}", [MIDDLE], [float(score)], math.nan) for i, score in enumerate(scores)]

    def nothing(name: str) -> Outcome:
        record = ImageRecord(image_id=name, path=name)
        return Outcome(record=record, status=Status.NO_OBJECT, reason=Reason.NO_FOREGROUND)

    order = np.random.default_rng(0).permutation(40)
    parts = [
        [nothing(f"n{start}"), *(rows[i] for i in order[start : start + 10])] for start in range(0, 40, 10)
    ]

    def pick(*parts: list[Outcome]) -> dict[str, list[str]]:
        picker = PicturePicker(num_shards=len(parts))
        for columns in shards(*parts):
            picker.add(columns)
        return {group.title: [p.record.image_id for p in group.picked] for group in picker.groups()}

    groups = pick(*parts)
    assert groups["Best"] == [f"{i:02d}" for i in range(39, 31, -1)]
    assert groups["Worst"] == [f"{i:02d}" for i in range(8)]
    assert len(set(groups["Random"])) == 8
    assert len(groups["One per shard"]) == 4
    # The draw depends on names, not on shards.
    assert pick([row for part in parts for row in part])["Random"] == groups["Random"]


def test_a_picture_of_a_large_image_is_small() -> None:
    (columns,) = shards([labelled("a", [MIDDLE], [0.5], math.nan)])
    picker = PicturePicker(num_shards=1)
    picker.add(columns)
    picked = picker.groups()[0].picked[0]
    assert picked.mean_score == 0.5
    maker = PictureMaker(None, DecodingConfig())
    assert maker.draw(picked.record, None) is None
    assert maker.colour_ratios(picker.sample()).shape == (0,)
    large = Instances(size=(3000, 1000), method="promerge")
    picture = maker.draw(picked.record, large)
    assert picture is not None
    assert picture.size == (400, 133)


def test_histograms_count_values_beyond_their_ends() -> None:
    histogram = Histogram(share_edges())
    histogram.add(np.array([1e-9, 0.5, 7.0]))
    assert histogram.total == 3
    assert histogram.share_below(0.01) == pytest.approx(1 / 3)
    assert histogram.median() == pytest.approx(10**-0.3)
    assert math.isnan(Histogram(share_edges()).median())
    assert Histogram(share_edges()).bars() == []


def test_bars_are_within_the_chart() -> None:
    histogram = Histogram(count_edges())
    histogram.add(np.arange(150))
    chart = bar_chart("Masks per image", histogram, "images", is_whole=True)
    assert chart.summary == "150 images, median 74"
    assert (chart.bars[0].range, chart.bars[0].count) == ("0 to 3", 4)
    assert all(bar.x >= 48 and bar.x + bar.width <= 360 and bar.y >= 0 for bar in chart.bars)
    assert sum(bar.count for bar in chart.bars) == 150
    empty = bar_chart("Score", Histogram(share_edges()), "masks")
    assert (empty.summary, empty.bars, empty.x_ticks) == ("no masks", (), ())


def test_lines_skip_missing_values() -> None:
    chart = line_chart("AP", [0, 1, 2], [("mask", [0.1, None, 0.2]), ("box", [None, None, None])])
    assert [text for _, _, text in chart.lines[0].points] == ["0.100", "0.200"]
    assert chart.lines[1].points == ()
    assert chart.summary == "mask: 0.100, 0.200"
    assert [tick.label for tick in chart.y_ticks] == ["0", "0.1", "0.2"]
    counts = line_chart("Labels", [0, 1], [("masks", [900, 1234])], is_whole=True)
    assert counts.summary == "masks: 900, 1,234"
