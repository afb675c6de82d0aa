#!/usr/bin/env python
"""Choose the biases of MultiCut for a corpus, without ground truth."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live
from rich.table import Table

from engine.bounds import Bounded, Count
from engine.corpora import Corpus, FolderCorpus
from engine.encoders import Encoder, EncoderConfig, load_encoder
from engine.errors import ConfigurationError, ImageError
from engine.images.decoding import DecodingConfig, decode_image
from engine.images.resizing import resize_image
from engine.proposals.config import MaskFilterConfig, MultiCutConfig
from jobs.cli.console import run_job
from jobs.cli.output import check_output, write_output

if TYPE_CHECKING:
    import torch

    from engine.proposals.bias import BiasScore

# Below this the table shows 0.00, and differences are rounding.
_MIN_CRITERION = 0.005


@dataclass(frozen=True, kw_only=True)
class BiasArguments(Bounded):
    """Try MultiCut biases on some images of a corpus and print the flags of the best ones for the label jobs.

    Needs no ground truth: the best biases give the highest mean of entropy (many parts) x contrast (parts
    that differ from their surroundings) x wholeness (few tiny parts). The biases of all distances are shifted
    together from those in --multicut.biases. One process, without Ray; images are encoded once. Give the same
    --encoder, --weights and --multicut flags as to the label job.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    corpus: str
    """Where the images are: a folder, s3://bucket/prefix, or skimage: for a few sample photographs."""
    num_images: Count = 32
    """Images to try biases on."""
    stride: Count = 1
    """Use every N-th image, to cover corpora sorted into folders."""
    device: str = "cpu"
    """Device of the encoder: cpu, cuda or cuda:N."""
    starts: Count = 1
    """Searches for each partition, in place of --multicut.starts; one is enough to compare biases."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    multicut: MultiCutConfig = field(default_factory=MultiCutConfig)
    mask_filter: MaskFilterConfig = field(default_factory=MaskFilterConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    output: str | None = None
    """JSON file of the results: a path or s3://bucket/key."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_output("--output", self.output)


def main(arguments: BiasArguments) -> None:
    # Imported late, so that --help answers at once.
    from engine.proposals.bias import choose_biases, score_biases

    corpus = FolderCorpus.open(arguments.corpus)
    encoder = load_centred(corpus, arguments)
    images = read_images(corpus, encoder.image_size, arguments)
    features = encode_images(list(images.values()), encoder, arguments.encoder.batch_size)
    config = replace(arguments.multicut, starts=arguments.starts)
    scores: list[BiasScore] = []
    with Live(_table(scores, None), console=Console()) as live:
        for score in score_biases(features, list(images), config, arguments.mask_filter):
            scores.append(score)
            live.update(_table(scores, choose_biases(scores)))
    if max(score.criterion for score in scores) < _MIN_CRITERION:
        raise ConfigurationError(
            "no bias is better than another: no part of these images differs from its surroundings; choose "
            "images with more objects, or more images with --num-images"
        )
    biases = choose_biases(scores)
    if biases in (scores[0].biases, scores[-1].biases):
        print(
            "warning: the best biases are the first or the last that were tried, so better ones may lie "
            "beyond: shift --multicut.biases that way and run again"
        )
    print(f"\nbest of {len(images)} images: --multicut.biases {_format(biases)}")
    content = {"images": list(images), "biases": biases, "scores": [asdict(score) for score in scores]}
    write_output(arguments.output, json.dumps(content, indent=2) + "\n")


def load_centred(corpus: Corpus, arguments: BiasArguments) -> Encoder:
    """The encoder, centred on the corpus as a label job does it."""
    from engine.labelling.calibration import measure_features

    resolved, measured = measure_features(corpus, arguments.encoder, arguments.decoding, arguments.device)
    statistics = None if measured is None else measured.statistics
    return load_encoder(resolved, arguments.device, statistics=statistics)


def read_images(
    corpus: Corpus, image_size: tuple[int, int], arguments: BiasArguments
) -> dict[str, NDArray[np.uint8]]:
    """Images by id, at the encoder's size. Raises ConfigurationError if none can be read."""
    images: dict[str, NDArray[np.uint8]] = {}
    for record in islice(corpus.records(), 0, arguments.num_images * arguments.stride, arguments.stride):
        try:
            image = decode_image(corpus.read(record), arguments.decoding)
        except ImageError as error:
            print(f"left out {record.image_id!r}: {error}")
        else:
            images[record.image_id] = resize_image(image, image_size)
    if not images:
        raise ConfigurationError(f"no readable image in {corpus.uri}")
    return images


def encode_images(images: list[NDArray[np.uint8]], encoder: Encoder, batch_size: int) -> torch.Tensor:
    """Features of all images, float16 (B, h, w, C), on the CPU."""
    import torch

    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    return torch.cat([encoder.encode(batch).cpu() for batch in batches])


def _table(scores: list[BiasScore], best: tuple[float, ...] | None) -> Table:
    """A row for each bias that was tried, the best so far in bold."""
    table = Table("biases", "entropy", "contrast", "wholeness", "masks/image", "product")
    for column in table.columns:
        column.justify = "right"
    for score in scores:
        values = (score.entropy, score.contrast, score.wholeness, score.num_masks, score.criterion)
        style = "bold" if score.biases == best else None
        table.add_row(_format(score.biases), *(f"{value:.2f}" for value in values), style=style)
    return table


def _format(biases: tuple[float, ...]) -> str:
    return " ".join(f"{bias:g}" for bias in biases)


if __name__ == "__main__":
    run_job(BiasArguments, main)
