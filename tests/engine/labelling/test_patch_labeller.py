from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from engine.encoders import EncoderConfig
from engine.errors import ConfigurationError
from engine.images.crops import Crop
from engine.images.tiling import TilingConfig
from engine.labelling.candidates import Candidates
from engine.labelling.config import LabellingConfig, NetworkConfig
from engine.labelling.labeller import label_images, warm_up
from engine.labelling.outcomes import Labels
from engine.labelling.patch_labeller import PatchLabeller, label_encoded, process_image, process_tile
from engine.masks.rle import decode_rles
from engine.proposals.config import ProMergeConfig
from engine.types import Optimality, Reason

EVERY_PATCH = ProMergeConfig(stride=1)
PLAIN = LabellingConfig(method="promerge", refine="none", promerge=EVERY_PATCH)
SIZE = (48, 64)


class DiscEncoder:
    """Features that tell bright patches of 8 pixels from dark ones, for images of 48 x 64."""

    name, feature_size, image_size, grid, weights_digest = "disc", 2, SIZE, (6, 8), "fixed"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        self.batches.append(len(images))
        grey = np.stack(images).mean(axis=3).reshape(-1, 6, 8, 8, 8).mean(axis=(2, 4))
        bright = grey > 100
        return torch.as_tensor(np.stack([bright, ~bright], axis=-1), dtype=torch.float16)


def label(images: Sequence[np.ndarray], config: LabellingConfig) -> list[Labels]:
    return label_images(images, PatchLabeller(config, DiscEncoder()), config)


def label_features(features: torch.Tensor, image: np.ndarray, config: LabellingConfig) -> Labels:
    """Labels of one whole image from its features."""
    (labels,) = label_encoded([(Crop.whole(image, SIZE), features)], config)
    assert isinstance(labels, Labels)
    return labels


def masks_of(labels: Labels) -> np.ndarray:
    assert labels.instances is not None
    return decode_rles(labels.instances.rles, labels.instances.size)


def disc_image(size: tuple[int, int]) -> np.ndarray:
    image = np.zeros((*size, 3), np.uint8)
    image[size[0] // 3 : size[0] * 2 // 3, size[1] // 4 : size[1] // 2] = 200
    return image


def test_a_bright_object_is_labelled_at_the_images_own_size() -> None:
    images = [disc_image(SIZE), disc_image((96, 128)), np.zeros((*SIZE, 3), np.uint8)]
    first, second, third = label(images, replace(PLAIN, encoder=EncoderConfig(batch_size=2)))
    assert np.array_equal(masks_of(first)[0], images[0][..., 0] > 0)
    assert np.array_equal(masks_of(second)[0], images[1][..., 0] > 0)
    assert (third.reason, third.instances) == (Reason.NO_FOREGROUND, None)
    assert first.instances is not None
    assert first.instances.boxes_xyxy.tolist() == [[16, 16, 32, 32]]
    assert (first.instances.areas.tolist(), first.instances.method) == ([256], "promerge")
    assert first.instances.scores[0] == pytest.approx(1.0)
    assert first.optimality is None
    assert label([], PLAIN) == []


@pytest.mark.parametrize("refine", ["none", "crf"])
def test_multicut_reports_the_optimality_of_its_partition(refine: Literal["none", "crf"]) -> None:
    config = LabellingConfig(method="multicut", refine=refine)
    images = [disc_image(SIZE), np.zeros((*SIZE, 3), np.uint8)]
    first, second = label(images, config)
    assert np.array_equal(masks_of(first)[0], images[0][..., 0] > 0)
    assert first.instances is not None
    assert first.instances.method == "multicut"
    assert first.optimality is not None
    assert first.optimality.objective < 0
    assert first.optimality.gap == pytest.approx(0, abs=0.1)
    assert second.reason == Reason.NO_FOREGROUND
    assert second.optimality == Optimality(objective=0, gap=0)


def test_refinement_finds_the_edge() -> None:
    image = np.zeros((*SIZE, 3), np.uint8)
    image[17:33, 16:34] = 200  # its edge lies off the patches
    features = DiscEncoder().encode([image])[0]
    coarse = masks_of(label_features(features, image, PLAIN))[0]
    fine = masks_of(
        label_features(features, image, LabellingConfig(method="promerge", promerge=EVERY_PATCH))
    )[0]
    truth = image[..., 0] > 0
    assert np.count_nonzero(fine ^ truth) < np.count_nonzero(coarse ^ truth)


def test_a_mask_that_refinement_changes_too_much_is_dropped() -> None:
    image = disc_image(SIZE)
    features = torch.zeros(6, 8, 2)
    features[..., 1] = 1
    features[0:1, 6:7] = torch.tensor([1.0, 0.0])  # an object where the image shows none
    assert label_features(features, image, PLAIN).instances is not None
    strict = LabellingConfig(method="promerge", min_refined_iou=1.0, promerge=EVERY_PATCH)
    assert label_features(features, image, strict).reason == Reason.REFINED_AWAY


def test_features_that_are_not_finite_reject_the_image() -> None:
    features = torch.ones(6, 8, 2)
    features[3, 4, 1] = torch.nan
    tiled = replace(PLAIN, tiling=TilingConfig(tile=32))
    for config in (PLAIN, tiled):
        assert label_features(features, disc_image(SIZE), config).reason == Reason.NON_FINITE


def test_an_error_in_one_image_does_not_affect_the_others() -> None:
    image = disc_image(SIZE)
    sound, broken = DiscEncoder().encode([image])[0], torch.zeros(6, 8, 0)
    crop = Crop.whole(image, SIZE)
    first, second, third = label_encoded([(crop, sound), (crop, broken), (crop, sound)], PLAIN)
    assert isinstance(second, ValueError)
    for labels in (first, third):
        assert isinstance(labels, Labels)
        assert np.array_equal(masks_of(labels)[0], image[..., 0] > 0)
    with pytest.raises(ValueError, match="tile"):
        process_tile(crop, sound, ValueError("the tile's whole image"), PLAIN)


def test_warming_up_changes_nothing() -> None:
    image = disc_image(SIZE)
    features = DiscEncoder().encode([image])[0]
    config = LabellingConfig(method="promerge", promerge=EVERY_PATCH)
    before = masks_of(label_features(features, image, config))
    warm_up(config)
    assert np.array_equal(masks_of(label_features(features, image, config)), before)


def test_configurations_that_contradict_themselves() -> None:
    with pytest.raises(ConfigurationError, match="component_fraction is a share, 0 to 1"):
        LabellingConfig(component_fraction=1.1)
    with pytest.raises(ConfigurationError, match="needs a trained network: give --weights"):
        LabellingConfig(method="solo")
    short = LabellingConfig(method="solo", encoder=EncoderConfig(weights="network.safetensors"))
    assert (short.network.weights, short.encoder) == ("network.safetensors", EncoderConfig())
    with pytest.raises(ConfigurationError, match="give --method solo"):
        LabellingConfig(network=NetworkConfig(earlier_weights=("network.safetensors",)))
    with pytest.raises(ConfigurationError, match="batch_size is a whole number >= 1"):
        NetworkConfig(batch_size=0)
    solo = LabellingConfig(method="solo", network=NetworkConfig(weights="network.safetensors"))
    with pytest.raises(ConfigurationError, match="to measure solo, label"):
        solo.check_has_features()
    assert (solo.uses_crf, replace(solo, refine="crf").uses_crf, PLAIN.uses_crf) == (False, True, False)


def large_image() -> np.ndarray:
    """A dark image of 144 x 256 with a large bright object and one smaller than a patch of the whole."""
    image = np.zeros((144, 256, 3), np.uint8)
    image[24:96, 32:128] = 200
    image[116:132, 196:212] = 200
    return image


@pytest.mark.parametrize("method", ["promerge", "multicut"])
def test_tiles_add_small_objects_to_the_large_ones_of_the_whole(
    method: Literal["promerge", "multicut"],
) -> None:
    small = np.zeros((144, 256), bool)
    small[116:132, 196:212] = True
    config = replace(PLAIN, method=method, tiling=TilingConfig(tile=64, tile_min_patches=2))
    masks = masks_of(label([large_image()], config)[0])
    ious = [np.count_nonzero(mask & small) / np.count_nonzero(mask | small) for mask in masks]
    # Tiles of 64 x 64 on 48 x 64 pixels: a patch is 8 x 10.7 pixels of the image.
    assert max(ious) > 0.4
    large = large_image()[..., 0] > 0
    large[110:] = False
    (whole,) = masks_of(label([large_image()], replace(config, tiling=TilingConfig()))[0])
    assert any(np.array_equal(mask, whole) for mask in masks)
    assert np.count_nonzero(whole & large) / np.count_nonzero(whole | large) > 0.8
    assert len(masks) == 2
    fewer = replace(config, tiling=TilingConfig(tile=64, tile_min_patches=20))
    assert len(masks_of(label([large_image()], fewer)[0])) == 1


@pytest.mark.parametrize("method", ["promerge", "multicut"])
def test_a_tile_takes_its_background_from_the_whole(method: Literal["promerge", "multicut"]) -> None:
    """A tile that a bright object nearly fills: by its border the object would be the background."""
    config = replace(PLAIN, method=method, tiling=TilingConfig(tile=64, tile_min_patches=1))
    features = torch.zeros(6, 8, 2)
    features[..., 0] = 1
    features[4:, 5:] = torch.tensor([0.0, 1.0])
    image = np.zeros((48, 64, 3), np.uint8)
    (alone,) = masks_of(label_features(features, image, config))
    assert alone[40, 45]
    # The dark corner is background; the bright object is cut by the tile's inner edges.
    inner = Crop(resized_hwc=image, box_xyxy=(64, 48, 128, 96), size=(96, 128))
    background = np.zeros((12, 16), bool)
    background[10:, 13:] = True
    cut = process_tile(inner, features, background, config)
    assert isinstance(cut, Candidates)
    assert len(cut.masks) == 0
    # Without inner edges, the object is found.
    background = np.zeros((6, 8), bool)
    background[4:, 5:] = True
    found = process_tile(Crop.whole(image, SIZE), features, background, config)
    assert isinstance(found, Candidates)
    assert np.array_equal(found.masks, ~background[None])


def test_tiles_are_skipped_if_the_whole_shows_no_background() -> None:
    blind = replace(PLAIN, promerge=ProMergeConfig(min_background=1.0), tiling=TilingConfig(tile=32))
    image = disc_image(SIZE)
    features = DiscEncoder().encode([image])[0]
    tile = Crop(resized_hwc=image, box_xyxy=(0, 0, 32, 32), size=SIZE)
    _, (crop, labels) = process_image(iter([(Crop.whole(image, SIZE), features), (tile, features)]), blind)
    assert crop is tile
    assert isinstance(labels, Labels)
    assert labels.reason == Reason.NO_BACKGROUND


def test_crops_of_several_images_share_batches_and_are_taken_as_needed() -> None:
    config = replace(PLAIN, encoder=EncoderConfig(batch_size=4), tiling=TilingConfig(tile=32))
    image, encoder = disc_image(SIZE), DiscEncoder()
    taken: list[int] = []

    def crops() -> Iterator[Crop]:
        for number in range(9):
            taken.append(number)
            tile = Crop(resized_hwc=image, box_xyxy=(0, 0, 32, 32), size=SIZE)
            yield Crop.whole(image, SIZE) if number % 3 == 0 else tile

    labels = PatchLabeller(config, encoder).generate(crops())
    assert taken == []
    next(labels)
    # The first image has ended when the whole of the second is seen, which is in the first batch.
    assert (encoder.batches, len(taken)) == ([4], 4)
    assert len(list(labels)) == 2
    assert encoder.batches == [4, 4, 1]
