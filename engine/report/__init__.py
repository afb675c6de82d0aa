"""A page that shows what a store holds: one file, that needs nothing else and no network."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2

from engine.corpora import Corpus
from engine.images.decoding import DecodingConfig
from engine.report import charts
from engine.report.charts import BarChart, LineChart, bar_chart, line_chart
from engine.report.pictures import Picture, PictureMaker, PicturePicker
from engine.report.rounds import (
    Round,
    comparable_evaluations,
    figure_of,
    read_rounds,
    recall_name,
)
from engine.report.signatures import find_signatures
from engine.report.statistics import Statistics
from engine.store.pseudo_labels import PseudoLabelStore, Version
from engine.store.version_info import flatten_settings
from engine.types import ImageRecord

__all__ = ["build_report"]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture of the page and what is said about it."""

    name: str
    caption: str
    picture: Picture | None

    @property
    def data_uri(self) -> str:
        assert self.picture is not None
        return "data:image/jpeg;base64," + base64.b64encode(self.picture.jpeg).decode()


def build_report(store: PseudoLabelStore, version: Version, corpus: Corpus | None) -> str:
    """The page of a version, as HTML. Without a corpus, masks are drawn on a plain ground.

    One pass over the version's shards, and one over the stabilities of every round; memory does not grow with
    the store. Whatever comes from the store is escaped.
    """
    statistics, picker = Statistics(), PicturePicker(num_shards=len(version.committed()))
    for columns in version.columns():
        statistics.add(columns)
        picker.add(columns)
    maker = PictureMaker(corpus, DecodingConfig(**version.info.configuration.get("decoding", {})))
    rounds = read_rounds(store)
    evaluation = comparable_evaluations(rounds)
    current = next(found for found in rounds if found.name == version.name)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["thousands"] = lambda value: f"{value:,}"
    environment.filters["figure"] = lambda value: "–" if value is None else f"{value:.3f}"
    template = environment.from_string(files(__name__).joinpath("page.html.jinja").read_text("utf-8"))
    return template.render(
        store_uri=store.uri,
        current=current,
        statistics=statistics,
        groups=_picture_groups(picker, maker),
        reasons=_reason_groups(statistics, maker),
        has_corpus=corpus is not None,
        maker=maker,
        histograms=_histograms(statistics),
        rounds=rounds,
        round_charts=_round_charts(rounds),
        evaluation=evaluation,
        recall=recall_name(rounds, evaluation),
        figure_of=figure_of,
        runs=version.runs(),
        signatures=find_signatures(statistics, rounds, current),
        settings=flatten_settings(current.info.configuration),
        chart={"width": charts.WIDTH, "height": charts.HEIGHT},
    )


def _picture_groups(picker: PicturePicker, maker: PictureMaker) -> list[tuple[str, list[Shown]]]:
    groups = []
    for title, picked in picker.groups():
        shown = [
            Shown(
                name=image.record.image_id,
                caption=f"{len(image.instances)} {'mask' if len(image.instances) == 1 else 'masks'} · "
                f"score {image.mean_score:.2f} · shard {image.shard}",
                picture=maker.draw(image.record, image.instances, image.sha256),
            )
            for image in picked
        ]
        groups.append((title, shown))
    return groups


def _reason_groups(statistics: Statistics, maker: PictureMaker) -> list[dict[str, Any]]:
    """Reasons, most frequent first, with examples."""
    ranked = sorted(statistics.reasons.items(), key=lambda item: (-item[1], item[0]))
    return [
        {
            "reason": reason,
            "count": count,
            "rejected": statistics.is_rejection(reason),
            "examples": [
                Shown(
                    name=example.image_id,
                    caption=example.detail,
                    picture=None
                    if statistics.is_rejection(reason)
                    else maker.draw(
                        ImageRecord(image_id=example.image_id, path=example.path, coco_id=example.coco_id),
                        None,
                    ),
                )
                for example in statistics.examples[reason]
            ],
        }
        for reason, count in ranked
    ]


def _histograms(statistics: Statistics) -> list[BarChart]:
    found = [
        bar_chart("Masks per image", statistics.masks_per_image, "images", is_whole=True),
        bar_chart("Area, % of the image", statistics.area_shares, "masks", unit=0.01),
        bar_chart("Score", statistics.scores, "masks"),
    ]
    if statistics.stabilities.total:
        found.append(bar_chart("Stability", statistics.stabilities, "masks with a stability"))
    return found


def _round_charts(rounds: list[Round]) -> list[LineChart]:
    """Precision, numbers of labels and stability by round, where there are several rounds."""
    if len(rounds) < 2:
        return []
    numbers = [found.info.round for found in rounds]
    counts = [("masks", [r.masks for r in rounds]), ("labelled images", [r.labelled for r in rounds])]
    found = [line_chart("Labels", numbers, counts, is_whole=True)]
    digest = comparable_evaluations(rounds)
    if digest is not None:
        kinds = [
            ("mask AP", [figure_of(found, digest, "masks", "AP") for found in rounds]),
            ("box AP", [figure_of(found, digest, "boxes", "AP") for found in rounds]),
        ]
        found.insert(0, line_chart("Average precision", numbers, kinds))
    stabilities = [r.mean_stability for r in rounds]
    if any(value is not None for value in stabilities):
        found.append(line_chart("Mean stability", numbers, [("mean stability", stabilities)]))
    return found
