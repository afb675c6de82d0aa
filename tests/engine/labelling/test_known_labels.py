"""Labels of synthetic images, as the first version of the pipeline gave them."""

import hashlib
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from engine.encoders import EncoderConfig
from engine.images.tiling import TilingConfig
from engine.labelling.config import LabellingConfig
from engine.labelling.labeller import label_images, load_labeller
from engine.proposals.config import ProMergeConfig

KNOWN = json.loads(Path(__file__).with_name("known_labels.json").read_text())
SIZES = ((96, 160), (128, 144), (90, 130))


def synthetic_image(seed: int) -> np.ndarray:
    """Bright discs of several sizes on a dark ground, with noise; the last one is uniform."""
    if seed == len(SIZES) - 1:
        return np.full((*SIZES[seed], 3), 7, np.uint8)
    rng = np.random.default_rng(seed)
    height, width = SIZES[seed]
    rows, columns = np.mgrid[:height, :width]
    image = np.broadcast_to(rng.integers(0, 90, 3), (height, width, 3)).copy()
    for _ in range(6):
        row, column, radius = rng.integers(0, height), rng.integers(0, width), rng.integers(6, height // 4)
        image[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] = rng.integers(110, 255, 3)
    return (image + rng.integers(-5, 6, image.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("method", ["promerge", "multicut"])
@pytest.mark.parametrize("refine", ["none", "crf"])
@pytest.mark.parametrize("tile", [None, 48])
def test_labels_are_the_known_ones(
    method: Literal["promerge", "multicut"], refine: Literal["none", "crf"], tile: int | None
) -> None:
    config = LabellingConfig(
        method=method,
        refine=refine,
        encoder=EncoderConfig(name="descriptor", image_size=96, batch_size=4),
        promerge=ProMergeConfig(stride=2),
        tiling=TilingConfig(tile=tile),
    )
    torch.set_num_threads(1)
    images = [synthetic_image(seed) for seed in range(len(SIZES))]
    found = label_images(images, load_labeller(config, "cpu"), config)
    expected = KNOWN[f"{method} {refine} {tile}"]
    assert [labels.reason for labels in found] == [image["reason"] for image in expected]
    for labels, known in zip(found, expected, strict=True):
        if labels.instances is not None:
            assert labels.instances.scores.tolist() == pytest.approx(known["scores"], abs=1e-4)
            assert hashlib.sha256(b" ".join(labels.instances.rles)).hexdigest()[:16] == known["rles"]
