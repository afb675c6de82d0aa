"""The report: one self-contained HTML page about a version of labels."""

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
from engine.report.notes import Verdict, find_notes
from engine.report.pictures import Picture, PictureMaker, PicturePicker
from engine.report.rounds import Round, comparable_evaluations, metric_of, read_rounds, recall_name
from engine.report.statistics import VersionStatistics, begin_statistics
from engine.store.pseudo_labels import PseudoLabelStore, Version
from engine.store.version_info import flatten_settings
from engine.types import ImageRecord


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture with its name and caption."""

    name: str
    caption: str
    picture: Picture | None

    @property
    def data_uri(self) -> str:
        assert self.picture is not None
        return "data:image/jpeg;base64," + base64.b64encode(self.picture.jpeg).decode()


def build_report(store: PseudoLabelStore, version: Version, corpus: Corpus | None) -> str:
    """The report of a version, as HTML. Without a corpus, masks are drawn on plain grey.

    Takes one pass over the version's shards and one over the stabilities of every round, in constant memory.
    All text from the store is escaped.
    """
    statistics, picker = begin_statistics(version), PicturePicker(num_shards=len(version.committed()))
    for columns in version.columns():
        statistics.add(columns)
        picker.add(columns)
    maker = PictureMaker(corpus, DecodingConfig(**version.info.configuration.get("decoding", {})))
    rounds = read_rounds(store)
    evaluation = comparable_evaluations(rounds)
    current = next(item for item in rounds if item.name == version.name)
    groups, reasons = _picture_groups(picker, maker), _reason_groups(statistics, maker)
    # Counted before the sample for the notes is read, since that is not shown.
    unreadable, replaced = maker.unreadable, maker.replaced
    colour_ratios = maker.colour_ratios(picker.sample()) if corpus is not None else None
    return _page_template().render(
        store_uri=store.uri,
        current=current,
        statistics=statistics,
        groups=groups,
        reasons=reasons,
        has_corpus=corpus is not None,
        unreadable=unreadable,
        replaced=replaced,
        histograms=_histograms(statistics),
        rounds=rounds,
        round_charts=_round_charts(rounds),
        evaluation=evaluation,
        recall=recall_name(rounds, evaluation),
        metric_of=metric_of,
        runs=version.runs(),
        notes=find_notes(statistics, colour_ratios),
        Verdict=Verdict,
        settings=flatten_settings(current.info.configuration),
        chart={"width": charts.WIDTH, "height": charts.HEIGHT},
    )


def _page_template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["thousands"] = lambda value: f"{value:,}"
    environment.filters["metric"] = lambda value: "–" if value is None else f"{value:.3f}"
    return environment.from_string(files("engine.report").joinpath("page.html.jinja").read_text("utf-8"))


def _picture_groups(picker: PicturePicker, maker: PictureMaker) -> list[tuple[str, list[Figure]]]:
    """Titles and figures."""
    groups = []
    for group in picker.groups():
        figures = [
            Figure(
                name=image.record.image_id,
                caption=f"{len(image.instances)} {'mask' if len(image.instances) == 1 else 'masks'} · "
                f"score {image.mean_score:.2f} · shard {image.shard}",
                picture=maker.draw(image.record, image.instances, image.sha256),
            )
            for image in group.picked
        ]
        groups.append((group.title, figures))
    return groups


def _reason_groups(statistics: VersionStatistics, maker: PictureMaker) -> list[dict[str, Any]]:
    """Reasons, most frequent first, with examples."""
    ranked = sorted(statistics.reasons.items(), key=lambda item: (-item[1], item[0]))
    return [
        {
            "reason": reason,
            "count": count,
            "rejected": statistics.is_rejection(reason),
            "examples": [
                Figure(
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


def _histograms(statistics: VersionStatistics) -> list[BarChart]:
    histograms = [
        bar_chart("Masks per image", statistics.masks_per_image, "images", is_whole=True),
        bar_chart("Area, % of the image", statistics.area_shares, "masks", unit=0.01),
        bar_chart("Score", statistics.scores, "masks"),
    ]
    if statistics.stabilities.total:
        histograms.append(bar_chart("Stability", statistics.stabilities, "masks with a stability"))
    return histograms


def _round_charts(rounds: list[Round]) -> list[LineChart]:
    """Charts of precision, label counts and stability over the rounds; none for a single round."""
    if len(rounds) < 2:
        return []
    numbers = [item.info.round for item in rounds]
    counts = [("masks", [r.masks for r in rounds]), ("labelled images", [r.labelled for r in rounds])]
    line_charts = [line_chart("Labels", numbers, counts, is_whole=True)]
    digest = comparable_evaluations(rounds)
    if digest is not None:
        kinds = [
            ("mask AP", [metric_of(item, digest, "masks", "AP") for item in rounds]),
            ("box AP", [metric_of(item, digest, "boxes", "AP") for item in rounds]),
        ]
        line_charts.insert(0, line_chart("Average precision", numbers, kinds))
    stabilities = [item.mean_stability for item in rounds]
    if any(value is not None for value in stabilities):
        line_charts.append(line_chart("Mean stability", numbers, [("mean stability", stabilities)]))
    return line_charts
