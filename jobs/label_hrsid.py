#!/usr/bin/env python
"""Label HRSID: ships in radar images."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from engine.corpora import open_hrsid
from engine.images.tiling import TilingConfig
from engine.labelling.config import LabellingConfig
from jobs.cli.console import run_job
from jobs.cli.labelling import LabelArguments, run_label_job


@dataclass(frozen=True, kw_only=True)
class HrsidArguments(LabelArguments):
    """Label HRSID: radar images in, a store of instance masks out. Run it again to resume after a stop.

    Ships are small and the sea is a common background, so ProMerge labels images and tiles of them. Only the
    file names and ids of an annotation file are used, never its annotations.
    Exit codes: 0 done (images that could not be read are rows with a reason), 1 failed, 2 wrong use.
    """

    corpus: str
    """The folder with JPEGImages and annotations, or s3://bucket/prefix."""
    annotations: str | None = None
    """The list of images (relative to the corpus, or an absolute path or S3 URI): train2017.json or
    test2017.json. Default: the only file in annotations/."""
    labelling: Annotated[LabellingConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: LabellingConfig(method="promerge", tiling=TilingConfig(tile=400))
    )


def main(arguments: HrsidArguments) -> None:
    run_label_job(open_hrsid(arguments.corpus, arguments.annotations), arguments)


if __name__ == "__main__":
    run_job(HrsidArguments, main)
