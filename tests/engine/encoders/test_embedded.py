"""The small ViT that travels with the package."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from engine.encoders import EncoderConfig, load_encoder
from engine.encoders.backbone import EMBEDDED_FILE
from engine.encoders.weights import read_weights
from engine.evaluation.ground_truth import read_ground_truth
from engine.evaluation.linear_probe import ProbeConfig, draw_patches, foreground_auc, foreground_patches
from engine.images.decoding import DecodingConfig, decode_image
from engine.images.resizing import resize_image


def test_the_embedded_encoder_is_small_and_states_what_it_is() -> None:
    size = EMBEDDED_FILE.stat().st_size
    assert size <= 12 * 2**20
    layout = read_weights(str(EMBEDDED_FILE)).layout
    assert layout is not None
    by_name = load_encoder(EncoderConfig(image_size=64, batch_size=2), "cpu")
    by_file = load_encoder(
        EncoderConfig(name=layout.architecture, weights=str(EMBEDDED_FILE), image_size=64, batch_size=2),
        "cpu",
    )
    assert by_name.name == "embedded"
    assert by_name.weights_digest == by_file.weights_digest
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert torch.equal(by_name.encode([image]), by_file.encode([image]))
    card = EMBEDDED_FILE.with_suffix(".md").read_text()
    assert layout.architecture in card
    assert "licences" in card


def test_the_embedded_encoder_tells_an_object_from_its_ground(
    development_data: Callable[[str], Path],
) -> None:
    """Patches of people in photographs that it was not trained on, by a linear probe (METHODS 6)."""
    folder = development_data("data/pennfudan")
    encoder = load_encoder(EncoderConfig(image_size=240, batch_size=1), "cpu")
    drawn = []
    for number, truth in enumerate(islice(read_ground_truth(str(folder)), 40)):
        (path,) = (folder / "images").glob(f"{PurePosixPath(truth.path).stem}.*")
        image = resize_image(decode_image(path.read_bytes(), DecodingConfig()), encoder.image_size)
        features = encoder.encode([image])[0].float().numpy()
        foreground = foreground_patches(truth, encoder.grid)
        drawn.append(draw_patches(features, foreground, ProbeConfig(), number))
    assert foreground_auc(drawn, ProbeConfig()) > 0.85
