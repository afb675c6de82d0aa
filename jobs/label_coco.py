#!/usr/bin/env python
"""Label the images of a COCO annotation file, or a folder of images with COCO's names."""

from dataclasses import dataclass

from engine.corpora import open_coco
from jobs.cli.console import run_job
from jobs.cli.labelling import LabelArguments, run_label_job


@dataclass(frozen=True, kw_only=True)
class CocoArguments(LabelArguments):
    """Label COCO: images in, a store of instance masks out. Run it again to resume after a stop.

    Only the file names and ids of an annotation file are used, never its annotations.
    Exit codes: 0 done (images that could not be read are rows with a reason), 1 failed, 2 wrong use.
    """

    corpus: str
    """The folder of the dataset, or s3://bucket/prefix."""
    annotations: str | None = None
    """Label the images listed in this file (annotations/instances_val2017.json; relative to the corpus, or an
    absolute path or S3 URI). Default: all images of the corpus, with the ids in their names."""
    images: str | None = None
    """The folder that the listed file names are relative to, itself relative to the corpus. Default: val2017
    for instances_val2017.json if there is such a folder, otherwise the corpus."""


def main(arguments: CocoArguments) -> None:
    corpus = open_coco(arguments.corpus, arguments.annotations, arguments.images)
    run_label_job(corpus, arguments)


if __name__ == "__main__":
    run_job(CocoArguments, main)
