"""Labels by a network whose answers are known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engine.encoders import EncoderConfig
from engine.errors import ConfigurationError, WeightsError
from engine.labelling.config import LabellingConfig
from engine.labelling.network_labeller import CheckpointLabeller, SoloLabeller
from engine.labelling.outcomes import Labels
from engine.masks.instances import Instances
from engine.masks.rle import decode_rles
from engine.solo.config import DetectionConfig, SoloConfig
from engine.solo.network import SoloOutputs, build_network
from engine.solo.weights import pack_network
from engine.types import Reason


@pytest.fixture
def weights(tiny_solo: SoloConfig, tmp_path: Path) -> str:
    """A network that sees objects everywhere."""
    network = build_network(tiny_solo)
    nn.init.constant_(network.category_head.prediction.bias, 2.0)
    path = tmp_path / "network.safetensors"
    path.write_bytes(pack_network(network.state_dict(), tiny_solo))
    return str(path)


def labeller_of(weights: str, **settings: Any) -> SoloLabeller:
    config = LabellingConfig(method="solo", encoder=EncoderConfig(weights=weights, batch_size=2))
    return SoloLabeller(replace(config, **settings), "cpu")


def one_object(rows: slice, columns: slice) -> SoloOutputs:
    """Of one image, one cell whose mask is the pixels (at stride 4, of 16 x 16) that are named."""
    features = torch.full((1, 1, 16, 16), -8.0)
    features[0, 0, rows, columns] = 8.0
    return SoloOutputs(
        objectness=torch.tensor([[4.0, -8.0]]), kernels=torch.ones(1, 2, 1), mask_features=features
    )


def mask_of(labels: Labels) -> np.ndarray:
    assert isinstance(labels.found, Instances)
    (mask,) = decode_rles(labels.found.rles, labels.found.size)
    return mask


def test_a_mask_is_brought_to_the_images_size_without_what_lies_beside_it(weights: str) -> None:
    square = np.zeros((64, 64, 3), np.uint8)
    # An image of 96 x 128 fills the upper 48 rows; the mask goes on below them.
    labels = labeller_of(weights).label(one_object(slice(4, 16), slice(0, 8)), 0, square, (96, 128))
    mask = mask_of(labels)
    expected = np.zeros((96, 128), bool)
    expected[32:, :64] = True
    assert np.count_nonzero(mask ^ expected) <= 2 * (96 + 128)
    assert isinstance(labels.found, Instances)
    assert labels.found.method == "solo"
    assert labels.found.scores[0] == pytest.approx(1 / (1 + np.exp(-4)), abs=2e-3)
    assert labels.optimality is None


def test_a_tiles_mask_lies_in_its_place_unless_an_inner_edge_cuts_it(weights: str) -> None:
    square, size, tile = np.zeros((64, 64, 3), np.uint8), (128, 128), (64, 64, 128, 128)
    labeller = labeller_of(weights)
    mask = mask_of(labeller.label(one_object(slice(4, 8), slice(8, 16)), 0, square, size, tile))
    # It touches the right edge, which is the image's.
    assert np.count_nonzero(mask[80:96, 96:128]) > 0.9 * np.count_nonzero(mask)
    cut = labeller.label(one_object(slice(4, 8), slice(0, 8)), 0, square, size, tile)
    assert cut.found == Reason.REFINED_AWAY


def test_the_crf_is_asked_for_and_finds_the_edge(weights: str) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[18:43, 18:43] = 200
    outputs = one_object(slice(4, 11), slice(4, 11))  # pixels 16 to 44
    assert not labeller_of(weights)._config.uses_crf
    coarse, fine = (
        mask_of(labeller_of(weights, refine=refine).label(outputs, 0, image, (64, 64)))
        for refine in ("none", "crf")
    )
    truth = image[..., 0] > 0
    assert np.count_nonzero(fine ^ truth) < np.count_nonzero(coarse ^ truth)


def test_a_network_comes_from_s3_too(weights: str, s3_server: Any) -> None:
    (s3_server.root / "bucket/network.safetensors").write_bytes(Path(weights).read_bytes())
    there = labeller_of("s3://bucket/network.safetensors")
    assert there.weights_digest == labeller_of(weights).weights_digest
    with pytest.raises(WeightsError, match="no weights at 's3://bucket/other"):
        labeller_of("s3://bucket/other.safetensors")


def test_kernels_and_features_of_autocast_may_differ_in_precision(weights: str) -> None:
    square, outputs = np.zeros((64, 64, 3), np.uint8), one_object(slice(4, 8), slice(4, 8))
    halved = replace(outputs, kernels=outputs.kernels.bfloat16())
    exact, found = (labeller_of(weights).label(o, 0, square, (64, 64)) for o in (outputs, halved))
    assert np.array_equal(mask_of(exact), mask_of(found))


def test_nothing_found_and_nothing_finite(weights: str) -> None:
    square, outputs = np.zeros((64, 64, 3), np.uint8), one_object(slice(4, 8), slice(4, 8))
    strict = labeller_of(weights, detection=DetectionConfig(min_score=0.99))
    assert strict.label(outputs, 0, square, (64, 64)).found == Reason.NO_FOREGROUND
    outputs.mask_features[0, 0, 0, 0] = torch.nan
    assert labeller_of(weights).label(outputs, 0, square, (64, 64)).found == Reason.NON_FINITE


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_labels_do_not_depend_on_the_rest_of_a_batch(weights: str, precision: Any) -> None:
    rng = np.random.default_rng(0)
    squares = rng.integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    encoder = EncoderConfig(weights=weights, batch_size=2, precision=precision)
    labeller = labeller_of(weights, encoder=encoder)
    together = labeller.label(labeller.forward(squares), 0, squares[0], (64, 64)).found
    alone = labeller.label(labeller.forward(squares[:1]), 0, squares[0], (64, 64)).found
    assert isinstance(together, Instances)
    assert isinstance(alone, Instances)
    assert len(together) > 0
    assert (alone.rles, alone.scores.tobytes()) == (together.rles, together.scores.tobytes())


def test_stability_is_how_far_earlier_networks_agree(
    weights: str, tiny_solo: SoloConfig, tmp_path: Path
) -> None:
    encoder = EncoderConfig(weights=weights, batch_size=2)
    config = LabellingConfig(method="solo", encoder=encoder, earlier_weights=(weights, weights))
    labeller, alone = CheckpointLabeller(config, "cpu"), labeller_of(weights)
    square, size = np.zeros((64, 64, 3), np.uint8), (64, 64)
    last = one_object(slice(0, 8), slice(0, 8))
    half, apart = one_object(slice(0, 8), slice(0, 4)), one_object(slice(12, 16), slice(12, 16))
    found = labeller.label([half, apart, last], 0, square, size).found
    by_itself = alone.label(last, 0, square, size).found
    assert isinstance(found, Instances)
    assert isinstance(by_itself, Instances)
    assert found.rles == by_itself.rles
    assert np.isnan(by_itself.stabilities).all()
    np.testing.assert_allclose(found.stabilities, [0.5], atol=0.05)
    assert labeller.label([half, half, half], 0, square, size).found.stabilities.tolist() == [2]
    outputs = labeller.forward(square[None])
    assert torch.equal(outputs[0].objectness, outputs[2].objectness)
    assert labeller.settings["earlier_networks"] == [alone.weights_digest] * 2
    other = tmp_path / "larger.safetensors"
    larger = replace(tiny_solo, image_size=96)
    other.write_bytes(pack_network(build_network(larger).state_dict(), larger))
    with pytest.raises(WeightsError, match="networks of one training"):
        CheckpointLabeller(replace(config, earlier_weights=(str(other),)), "cpu")
    with pytest.raises(ConfigurationError, match="give --method solo"):
        LabellingConfig(earlier_weights=(weights,))


def test_what_a_network_says_of_itself_names_no_place(weights: str) -> None:
    labeller = labeller_of(weights)
    assert labeller.image_size == (64, 64)
    assert labeller.settings["grid"]["grids"] == (8, 6, 4, 3, 2)
    assert weights not in str(labeller.settings)


def test_other_weights_are_one_line(tmp_path: Path, weights: str) -> None:
    with pytest.raises(ConfigurationError, match=r"trained network: give --weights"):
        LabellingConfig(method="solo")
    with pytest.raises(ConfigurationError, match="leave --encoder out"):
        LabellingConfig(method="solo", encoder=EncoderConfig(name="vit_tiny_patch16_224", weights=weights))
    with pytest.raises(ConfigurationError, match="to measure solo, label"):
        LabellingConfig(method="solo", encoder=EncoderConfig(weights=weights)).check_has_features()
    data = Path(weights).read_bytes()
    for name, content, message in (
        ("checkpoint.pt", b"PK\x03\x04 and so on", "not a network written by jobs/train_solo.py"),
        ("half.safetensors", data[: len(data) // 2], "not a complete .safetensors file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=message):
            labeller_of(str(tmp_path / name))
