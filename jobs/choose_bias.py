#!/usr/bin/env python
"""Choose the biases of MultiCut for a corpus, without ground truth."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live
from rich.table import Table

from engine.corpora import Corpus, FolderCorpus
from engine.encoders import Encoder, EncoderConfig, load_encoder
from engine.errors import ConfigurationError, ImageError
from engine.images.decoding import DecodingConfig, decode_image
from engine.images.resizing import resize_image
from engine.proposals.bias import BiasScore, choose_biases, score_biases
from engine.proposals.config import MaskFilterConfig, MultiCutConfig
from jobs.cli.console import run_job
from jobs.cli.output import check_output, write_output

# Below, the table shows 0.00, and what differs is rounding.
_LEAST_CRITERION = 0.005


@dataclass(frozen=True, kw_only=True)
class BiasArguments:
    """Try biases on some images of a corpus and print the flags of the best for the label jobs.

    Needs no ground truth: the best partitions have parts that are many, stand out and are no splinters, by
    the mean of entropy times contrast times wholeness. The biases of all distances rise and fall together,
    from where --multicut.biases has them. One process, without Ray; images are encoded once. Give --encoder,
    --weights and --multicut as the label job will have them.
    """

    corpus: str
    """Where the images are: a folder, s3://bucket/prefix, or skimage: for a few photographs to try with."""
    num_images: int = 32
    """How many of them to try on."""
    stride: int = 1
    """Take every so many-th image only, so that a corpus in folders by kind is met in its breadth."""
    device: str = "cpu"
    """Where the encoder runs: cpu, cuda or cuda:N."""
    starts: int = 1
    """Searches for each partition, as multicut.starts; one is enough to compare."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    multicut: MultiCutConfig = field(default_factory=MultiCutConfig)
    mask_filter: MaskFilterConfig = field(default_factory=MaskFilterConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    output: str | None = None
    """Where to write the figures as JSON: a file or s3://bucket/key."""

    def __post_init__(self) -> None:
        check_output("--output", self.output)
        for name in ("num_images", "stride", "starts"):
            if getattr(self, name) < 1:
                raise ConfigurationError(
                    f"--{name.replace('_', '-')} is at least 1, got {getattr(self, name)}"
                )


def main(arguments: BiasArguments) -> None:
    encoder = load_encoder(arguments.encoder, arguments.device)
    images = read_images(FolderCorpus.open(arguments.corpus), encoder.image_size, arguments)
    features = encode_images(list(images.values()), encoder, arguments.encoder.batch_size)
    config = replace(arguments.multicut, starts=arguments.starts)
    scores: list[BiasScore] = []
    with Live(_table(scores), console=Console()) as live:
        for score in score_biases(features, list(images), config, arguments.mask_filter):
            scores.append(score)
            live.update(_table(scores))
    if max(score.criterion for score in scores) < _LEAST_CRITERION:
        raise ConfigurationError(
            "no bias is better than another: in no partition of these images does a part stand out; give "
            "images with more in them, or more of them with --num-images"
        )
    biases = choose_biases(scores)
    print(f"\nbest of {len(images)} images: --multicut.biases {_format(biases)}")
    figures = {"images": list(images), "biases": biases, "scores": [asdict(score) for score in scores]}
    write_output(arguments.output, json.dumps(figures, indent=2) + "\n")


def read_images(
    corpus: Corpus, image_size: tuple[int, int], arguments: BiasArguments
) -> dict[str, NDArray[np.uint8]]:
    """Images by id, at the encoder's size. Raises ConfigurationError where not one can be read."""
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
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    return torch.cat([encoder.encode(batch).cpu() for batch in batches])


def _table(scores: list[BiasScore]) -> Table:
    table = Table("biases", "entropy", "contrast", "wholeness", "masks/image", "product")
    for column in table.columns:
        column.justify = "right"
    best = choose_biases(scores) if scores else None
    for score in scores:
        figures = (score.entropy, score.contrast, score.wholeness, score.num_masks, score.criterion)
        style = "bold" if score.biases == best else None
        table.add_row(_format(score.biases), *(f"{figure:.2f}" for figure in figures), style=style)
    return table


def _format(biases: tuple[float, ...]) -> str:
    return " ".join(f"{bias:g}" for bias in biases)


if __name__ == "__main__":
    run_job(BiasArguments, main)
