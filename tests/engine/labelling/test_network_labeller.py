"""Labels by a network whose answers are known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engine.errors import WeightsError
from engine.images.crops import Crop
from engine.labelling.config import LabellingConfig, NetworkConfig
from engine.labelling.labeller import label_images, load_labeller
from engine.labelling.network_labeller import NetworkLabeller, TrainedNetwork, load_networks
from engine.labelling.outcomes import Labels
from engine.masks.instances import Instances
from engine.masks.rle import decode_rles
from engine.solo.config import DetectionConfig, SoloConfig
from engine.solo.network import SoloOutputs, build_network
from engine.solo.weights import pack_network
from engine.types import Reason

SQUARE = np.zeros((64, 64, 3), np.uint8)


@pytest.fixture
def weights(tiny_solo: SoloConfig, tmp_path: Path) -> str:
    """A network that finds objects everywhere."""
    network = build_network(tiny_solo)
    nn.init.constant_(network.category_head.prediction.bias, 2.0)
    path = tmp_path / "network.safetensors"
    path.write_bytes(pack_network(network.state_dict(), tiny_solo))
    return str(path)


def config_of(weights: str, *earlier: str, **settings: Any) -> LabellingConfig:
    network = NetworkConfig(weights=weights, earlier_weights=earlier, batch_size=2)
    return LabellingConfig(**{"method": "solo", "network": network, **settings})


def network_of(weights: str, **settings: Any) -> TrainedNetwork:
    return TrainedNetwork(weights, config_of(weights, **settings), "cpu")


def one_object(rows: slice, columns: slice) -> SoloOutputs:
    """Outputs for one image: one cell, whose mask is these rows and columns of 16 x 16 pixels (stride 4)."""
    features = torch.full((1, 1, 16, 16), -8.0)
    features[0, 0, rows, columns] = 8.0
    return SoloOutputs(
        objectness=torch.tensor([[4.0, -8.0]]), kernels=torch.ones(1, 2, 1), mask_features=features
    )


def mask_of(labels: Labels) -> np.ndarray:
    (mask,) = decode_rles(found_in(labels).rles, found_in(labels).size)
    return mask


def found_in(labels: Labels | Exception) -> Instances:
    assert isinstance(labels, Labels)
    assert labels.instances is not None
    return labels.instances


def test_a_mask_is_resized_to_the_image_without_the_padding(weights: str) -> None:
    # An image of 96 x 128 fills the upper 48 rows of the square; the mask continues below them.
    outputs = one_object(slice(4, 16), slice(0, 8))
    labels = network_of(weights).process_crop(outputs, 0, Crop.whole(SQUARE, (96, 128)))
    expected = np.zeros((96, 128), bool)
    expected[32:, :64] = True
    assert np.count_nonzero(mask_of(labels) ^ expected) <= 2 * (96 + 128)
    assert found_in(labels).method == "solo"
    assert found_in(labels).scores[0] == pytest.approx(1 / (1 + np.exp(-4)), abs=2e-3)
    assert labels.optimality is None


def test_a_tiles_mask_is_placed_in_the_image_unless_an_inner_edge_cuts_it(weights: str) -> None:
    network = network_of(weights)
    tile = Crop(resized_hwc=SQUARE, box_xyxy=(64, 64, 128, 128), size=(128, 128))
    mask = mask_of(network.process_crop(one_object(slice(4, 8), slice(8, 16)), 0, tile))
    # It touches the right edge, which is the image's.
    assert np.count_nonzero(mask[80:96, 96:128]) > 0.9 * np.count_nonzero(mask)
    cut = network.process_crop(one_object(slice(4, 8), slice(0, 8)), 0, tile)
    assert cut.reason == Reason.REFINED_AWAY


def test_the_crf_is_optional_and_finds_the_edge(weights: str) -> None:
    image = SQUARE.copy()
    image[18:43, 18:43] = 200
    outputs = one_object(slice(4, 11), slice(4, 11))  # pixels 16 to 44
    default, coarse, fine = (
        mask_of(network_of(weights, refine=refine).process_crop(outputs, 0, Crop.whole(image, (64, 64))))
        for refine in ("auto", "none", "crf")
    )
    truth = image[..., 0] > 0
    assert np.array_equal(default, coarse)
    assert np.count_nonzero(fine ^ truth) < np.count_nonzero(coarse ^ truth)


def test_a_network_is_read_from_s3_too(weights: str, s3_server: Any) -> None:
    (s3_server.root / "bucket/network.safetensors").write_bytes(Path(weights).read_bytes())
    there = network_of("s3://bucket/network.safetensors")
    assert there.weights_digest == network_of(weights).weights_digest
    with pytest.raises(WeightsError, match="no weights at 's3://bucket/other"):
        network_of("s3://bucket/other.safetensors")


def test_kernels_and_features_of_autocast_may_differ_in_precision(weights: str) -> None:
    outputs = one_object(slice(4, 8), slice(4, 8))
    halved = replace(outputs, kernels=outputs.kernels.bfloat16())
    crop = Crop.whole(SQUARE, (64, 64))
    exact, rounded = (network_of(weights).process_crop(o, 0, crop) for o in (outputs, halved))
    assert np.array_equal(mask_of(exact), mask_of(rounded))


def test_no_detection_and_outputs_that_are_not_finite(weights: str) -> None:
    crop, outputs = Crop.whole(SQUARE, (64, 64)), one_object(slice(4, 8), slice(4, 8))
    strict = network_of(weights, detection=DetectionConfig(min_score=0.99))
    assert strict.process_crop(outputs, 0, crop).reason == Reason.NO_FOREGROUND
    outputs.mask_features[0, 0, 0, 0] = torch.nan
    assert network_of(weights).process_crop(outputs, 0, crop).reason == Reason.NON_FINITE


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_labels_do_not_depend_on_the_rest_of_a_batch(weights: str, precision: Any) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    config = config_of(weights, network=NetworkConfig(weights=weights, batch_size=2, precision=precision))
    labeller = load_labeller(config, "cpu")
    (together, _), (alone,) = (label_images(some, labeller, config) for some in (images, images[:1]))
    assert len(found_in(together)) > 0
    assert found_in(alone).rles == found_in(together).rles
    assert found_in(alone).scores.tobytes() == found_in(together).scores.tobytes()


class FixedNetwork(TrainedNetwork):
    """A network whose outputs are given; None stands for an error."""

    outputs: SoloOutputs | None = None

    def forward(self, squares_bhwc: np.ndarray) -> Any:
        return self.outputs

    def process_crop(self, outputs: Any, number: int, crop: Crop) -> Labels:
        if outputs is None:
            raise RuntimeError("surprise")
        return super().process_crop(outputs, number, crop)


def labels_by(weights: str, *outputs: SoloOutputs | None) -> Labels | Exception:
    """Labels of a black image by networks with these outputs, the last one first in rank."""
    config = config_of(weights)
    networks = [FixedNetwork(weights, config, "cpu") for _ in outputs]
    for network, output in zip(networks, outputs, strict=True):
        network.outputs = output
    (labels,) = NetworkLabeller(config, networks).generate([Crop.whole(SQUARE, (64, 64))])
    return labels


def test_stability_is_how_far_earlier_networks_agree(weights: str) -> None:
    last = one_object(slice(0, 8), slice(0, 8))
    half, apart = one_object(slice(0, 8), slice(0, 4)), one_object(slice(12, 16), slice(12, 16))
    found, alone = found_in(labels_by(weights, half, apart, last)), found_in(labels_by(weights, last))
    assert found.rles == alone.rles
    assert np.isnan(alone.stabilities).all()
    np.testing.assert_allclose(found.stabilities, [0.5], atol=0.05)
    assert found_in(labels_by(weights, half, half, half)).stabilities.tolist() == [2]


def test_an_error_is_that_of_the_image(weights: str) -> None:
    error = labels_by(weights, None)
    assert isinstance(error, RuntimeError)


def test_networks_of_one_training(weights: str, tiny_solo: SoloConfig, tmp_path: Path) -> None:
    labeller = load_labeller(config_of(weights, weights, weights), "cpu")
    assert labeller.settings["earlier_networks"] == [labeller.weights_digest] * 2
    assert load_labeller(config_of(weights), "cpu").settings.keys() == {"network"}
    other = tmp_path / "larger.safetensors"
    larger = replace(tiny_solo, image_size=96)
    other.write_bytes(pack_network(build_network(larger).state_dict(), larger))
    config = config_of(weights, str(other))
    with pytest.raises(WeightsError, match="networks of one training"):
        NetworkLabeller(config, load_networks(config, "cpu"))
    with pytest.raises(WeightsError, match=r"set network\.weights"):
        load_networks(LabellingConfig(), "cpu")


def test_a_networks_description_names_no_path(weights: str) -> None:
    labeller = load_labeller(config_of(weights), "cpu")
    assert labeller.image_size == (64, 64)
    assert labeller.settings["network"]["grid"]["grids"] == (8, 6, 4, 3, 2)
    assert weights not in str(labeller.settings)


def test_files_that_are_no_network_are_refused_in_one_line(tmp_path: Path, weights: str) -> None:
    data = Path(weights).read_bytes()
    for name, content, message in (
        ("checkpoint.pt", b"PK\x03\x04 and so on", "not a network written by jobs/train_solo.py"),
        ("half.safetensors", data[: len(data) // 2], "not a complete .safetensors file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=message):
            network_of(str(tmp_path / name))
