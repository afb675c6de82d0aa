#!/usr/bin/env python
"""Summarise a label store on one HTML page."""

from __future__ import annotations

from dataclasses import dataclass

from engine.corpora import open_corpus
from engine.objects.object_store import open_objects, write_uri
from engine.store.pseudo_labels import PseudoLabelStore
from jobs.cli.console import run_job


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """Summarise a label store on one HTML page, which needs no other file and no network.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    store: str
    """Label store: a folder or s3://bucket/prefix."""
    output: str
    """HTML file to write, such as report.html: a path or s3://bucket/key."""
    corpus: str | None = None
    """Where the images are now; without it, masks are drawn on a plain background."""
    round: int | None = None
    """Round of labels; the latest by default."""


def main(arguments: ReportArguments) -> None:
    # Imported late, so that --help answers at once.
    from engine.report.page import build_report

    labels = open_objects(arguments.store)
    store = PseudoLabelStore(labels)
    version = store.version(arguments.round)
    corpus = None
    if arguments.corpus is not None:
        corpus = open_corpus(arguments.corpus, version.info.corpus_kind, kept_indexes=labels)
    page = build_report(store, version, corpus).encode()
    write_uri(arguments.output, page)
    print(f"report: {arguments.output} ({len(page) / 1e6:.1f} MB, version {version.name})")


if __name__ == "__main__":
    run_job(ReportArguments, main)
