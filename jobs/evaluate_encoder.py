#!/usr/bin/env python
"""Evaluate an encoder without training a segmenter: a linear probe, its labels and its speed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, get_args

import numpy as np
from rich.console import Console

from engine.evaluation.linear_probe import ProbeConfig
from engine.labelling.config import PatchMethod
from engine.objects.object_store import open_objects
from engine.sweep.feature_cache import EncodedImage, FeatureCache
from jobs.cli.console import run_job
from jobs.cli.measuring import MeasuringArguments, encode_images, metrics_of
from jobs.cli.output import check_output, write_output

if TYPE_CHECKING:
    from engine.sweep.points import SweptImage

METHODS = get_args(PatchMethod)


@dataclass(frozen=True, kw_only=True)
class EvaluateEncoderArguments(MeasuringArguments):
    """Evaluate an encoder on annotated images, without training a segmenter.

    Foreground AUC: a logistic regression on single patches, fitted on some of the images, tells foreground
    from background in the others; the AUC of raw pixels is the baseline. AP and AR: accuracy of the labels
    that each method makes from the encoder's features. Seconds: time of the encoder alone, per image.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """

    probe: ProbeConfig = field(default_factory=ProbeConfig)
    output: str | None = None
    """JSON file of the results: a path or s3://bucket/key."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_output("--output", self.output)


def main(arguments: EvaluateEncoderArguments) -> None:
    # Imported late, so that --help answers at once.
    from engine.sweep.points import SweepPoint

    corpus, matches = arguments.find_images()
    resolved, encoder = arguments.load_encoder(arguments.labelling.encoder, corpus)
    labelling = replace(arguments.labelling, encoder=resolved)
    # Warm up: the first image of a process takes longer.
    encoder.encode([np.zeros((*encoder.image_size, 3), np.uint8)])
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(open_objects(folder))
        images, cached = encode_images(corpus, matches, encoder, labelling, cache)
        aucs = probe_images(images, cache, arguments.probe)
        configs = [replace(labelling, method=method) for method in METHODS]
        results = arguments.evaluate([SweepPoint(config=c, images=images) for c in configs], cache)
    cpu_s, wall_s = (s / max(cached.num_encoded, 1) for s in (cached.encoder_cpu_s, cached.encoder_wall_s))
    Console().print(
        arguments.table(["method"], [([m], result) for m, result in zip(METHODS, results, strict=True)])
    )
    print(
        f"{encoder.name} on {len(images)} images: foreground AUC {aucs['foreground_auc']:.3f} "
        f"(pixels {aucs['foreground_auc_of_pixels']:.3f}), {cpu_s:.3f} s of CPU and {wall_s:.3f} s "
        "of wall time per image"
    )
    content = {
        "encoder": {
            "name": encoder.name,
            "weights_digest": encoder.weights_digest,
            "grid": list(encoder.grid),
        },
        "images": len(images),
        **aucs,
        "encoder_cpu_s_per_image": cpu_s,
        "encoder_wall_s_per_image": wall_s,
        "methods": {method: metrics_of(result) for method, result in zip(METHODS, results, strict=True)},
        "protocol": results[0].protocol,
        "probe": asdict(arguments.probe),
        "configuration": asdict(arguments.labelling),
    }
    write_output(arguments.output, json.dumps(content, indent=1) + "\n")


def probe_images(images: Sequence[SweptImage], cache: FeatureCache, config: ProbeConfig) -> dict[str, float]:
    """Foreground AUC of the encoder's features, and of the raw pixels of the same patches."""
    from engine.evaluation.linear_probe import (
        draw_patches,
        foreground_auc,
        foreground_patches,
        pixel_features,
    )

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
    run_job(EvaluateEncoderArguments, main)
