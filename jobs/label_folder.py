#!/usr/bin/env python
"""Label every image below a folder or an S3 prefix."""

from engine.corpora import FolderCorpus
from jobs.cli.console import run_job
from jobs.cli.labelling import LabelArguments, run_label_job


def main(arguments: LabelArguments) -> None:
    run_label_job(FolderCorpus.open(arguments.corpus), arguments)


if __name__ == "__main__":
    run_job(LabelArguments, main)
