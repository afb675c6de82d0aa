#!/usr/bin/env python
"""Judge an encoder without training on it: a linear probe, the labels it leads to, and its speed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import get_args

import numpy as np
from rich.console import Console

from engine.evaluation.linear_probe import (
    ProbeConfig,
    draw_patches,
    foreground_auc,
    foreground_patches,
    pixel_features,
)
from engine.labelling.config import PatchMethod
from engine.objects.object_store import open_objects
from engine.sweep.feature_cache import EncodedImage, FeatureCache
from engine.sweep.points import SweepPoint, SweptImage
from jobs.cli.console import run_job
from jobs.cli.measuring import MeasuringArguments, encode_images, figures_of
from jobs.cli.output import check_output, write_output

METHODS = get_args(PatchMethod)


@dataclass(frozen=True, kw_only=True)
class JudgeArguments(MeasuringArguments):
    """Judge an encoder on annotated images, without training a segmenter.

    Foreground AUC: how well a logistic regression on single patches, fitted on one part of the images, tells
    foreground from background in the others; that of the patches' raw pixels stands beside it. AP and AR:
    what the labels of each method are worth. Seconds: the encoder's own, per image.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    probe: ProbeConfig = field(default_factory=ProbeConfig)
    output: str | None = None
    """Where to write the figures as JSON: a file or s3://bucket/key."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_output("--output", self.output)


def main(arguments: JudgeArguments) -> None:
    corpus, matches = arguments.find_images()
    encoder = arguments.load_encoder(arguments.labelling.encoder)
    # The first image of a process waits for more than its features.
    encoder.encode([np.zeros((*encoder.image_size, 3), np.uint8)])
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(open_objects(folder))
        images, cached = encode_images(corpus, matches, encoder, arguments.labelling, cache)
        aucs = probe_images(images, cache, arguments.probe)
        configs = [replace(arguments.labelling, method=method) for method in METHODS]
        results = arguments.evaluate([SweepPoint(config=c, images=images) for c in configs], cache)
    cpu_s, wall_s = (s / max(cached.num_encoded, 1) for s in (cached.encoder_cpu_s, cached.encoder_wall_s))
    Console().print(
        arguments.table(["method"], [([m], result) for m, result in zip(METHODS, results, strict=True)])
    )
    print(
        f"{encoder.name} on {len(images)} images: foreground AUC {aucs['foreground_auc']:.3f} "
        f"(pixels {aucs['foreground_auc_of_pixels']:.3f}), {cpu_s:.3f} s of processor and {wall_s:.3f} s "
        "of clock an image"
    )
    judgement = {
        "encoder": {
            "name": encoder.name,
            "weights_digest": encoder.weights_digest,
            "grid": list(encoder.grid),
        },
        "images": len(images),
        **aucs,
        "encoder_cpu_s_per_image": cpu_s,
        "encoder_wall_s_per_image": wall_s,
        "methods": {method: figures_of(result) for method, result in zip(METHODS, results, strict=True)},
        "protocol": results[0].protocol,
        "probe": asdict(arguments.probe),
        "configuration": asdict(arguments.labelling),
    }
    write_output(arguments.output, json.dumps(judgement, indent=1) + "\n")


def probe_images(images: Sequence[SweptImage], cache: FeatureCache, config: ProbeConfig) -> dict[str, float]:
    """Foreground AUC of the encoder's features and of the same patches' pixels."""
    features, pixels = [], []
    for number, image in enumerate(images):
        if image.key is not None:
            encoded: EncodedImage = cache.read(image.key)
            grid = (encoded.features_hwc.shape[0], encoded.features_hwc.shape[1])
            labels = foreground_patches(image.truth, grid)
            features.append(draw_patches(encoded.features_hwc, labels, config, number))
            pixels.append(draw_patches(pixel_features(encoded.resized_hwc, grid), labels, config, number))
    return {
        "foreground_auc": foreground_auc(features, config),
        "foreground_auc_of_pixels": foreground_auc(pixels, config),
    }


if __name__ == "__main__":
    run_job(JudgeArguments, main)
