#!/usr/bin/env python
"""Show what a store of labels holds, on one page."""

from __future__ import annotations

from dataclasses import dataclass

from engine.corpora import open_corpus
from engine.objects.object_store import open_objects, write_uri
from engine.report.page import build_report
from engine.store.pseudo_labels import PseudoLabelStore
from jobs.cli.console import run_job


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """Show what a store of labels holds on one HTML page, which needs nothing else and no network.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    store: str
    """Where the labels are: a folder or s3://bucket/prefix."""
    output: str
    """The page: a file or s3://bucket/key, report.html say."""
    corpus: str | None = None
    """Where the images are now; without, masks are drawn on a plain ground."""
    round: int | None = None
    """The round of labels; the latest by default."""


def main(arguments: ReportArguments) -> None:
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
