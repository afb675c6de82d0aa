#!/usr/bin/env python
"""Label SA-1B, from its published tar files or from unpacked images."""

from dataclasses import dataclass

from engine.corpora import Sa1bCorpus
from engine.objects.object_store import open_objects
from jobs.cli.console import run_job
from jobs.cli.labelling import LabelArguments, run_label_job


@dataclass(frozen=True, kw_only=True)
class Sa1bArguments(LabelArguments):
    """Label SA-1B: images in, a store of instance masks out. Run it again to resume after a stop.

    Tar files are read in place, member by member, and never unpacked; their indexes are kept in the store.
    Exit codes: 0 done (images that could not be read are rows with a reason), 1 failed, 2 wrong use.
    """

    corpus: str
    """The folder with sa_*.tar or sa_*.jpg, or its s3://bucket/prefix."""


def main(arguments: Sa1bArguments) -> None:
    run_label_job(Sa1bCorpus.open(arguments.corpus, open_objects(arguments.store)), arguments)


if __name__ == "__main__":
    run_job(Sa1bArguments, main)
