from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from engine.encoders import EncoderConfig
from engine.errors import ConfigurationError
from engine.images.tiling import TilingConfig
from engine.labelling import candidates
from engine.labelling.candidates import Candidates, Tile, group_candidates
from engine.labelling.config import LabellingConfig
from engine.labelling.outcomes import Labels, make_outcome
from engine.labelling.patch_labeller import label_features, label_images, warm_up
from engine.masks.instances import Instances
from engine.masks.packing import make_instances
from engine.masks.rle import decode_rles
from engine.proposals.config import ProMergeConfig
from engine.types import ImageRecord, Optimality, Reason, Status

EVERY_PATCH = ProMergeConfig(stride=1)
PLAIN = LabellingConfig(refine="none", promerge=EVERY_PATCH)


class DiscEncoder:
    """Features that tell bright patches of 8 pixels from dark ones, for images of 48 x 64."""

    name, feature_size, image_size, grid, weights_digest = "disc", 2, (48, 64), (6, 8), "fixed"

    def encode(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        grey = np.stack(images).mean(axis=3).reshape(-1, 6, 8, 8, 8).mean(axis=(2, 4))
        bright = grey > 100
        return torch.as_tensor(np.stack([bright, ~bright], axis=-1), dtype=torch.float16)


def masks_of(labels: Labels) -> np.ndarray:
    assert isinstance(labels.found, Instances)
    return decode_rles(labels.found.rles, labels.found.size)


def disc_image(size: tuple[int, int]) -> np.ndarray:
    image = np.zeros((*size, 3), np.uint8)
    image[size[0] // 3 : size[0] * 2 // 3, size[1] // 4 : size[1] // 2] = 200
    return image


def test_a_bright_object_is_labelled_at_the_images_own_size() -> None:
    images = [disc_image((48, 64)), disc_image((96, 128)), np.zeros((48, 64, 3), np.uint8)]
    config = replace(PLAIN, encoder=EncoderConfig(batch_size=2))
    first, second, third = label_images(images, DiscEncoder(), config)
    assert np.array_equal(masks_of(first)[0], images[0][..., 0] > 0)
    assert np.array_equal(masks_of(second)[0], images[1][..., 0] > 0)
    assert third.found == Reason.NO_FOREGROUND
    assert isinstance(first.found, Instances)
    assert first.found.boxes_xyxy.tolist() == [[16, 16, 32, 32]]
    assert (first.found.areas.tolist(), first.found.method) == ([256], "promerge")
    assert first.found.scores[0] == pytest.approx(1.0)
    assert first.optimality is None


@pytest.mark.parametrize("refine", ["none", "crf"])
def test_multicut_says_how_good_its_partition_is(refine: Literal["none", "crf"]) -> None:
    config = LabellingConfig(method="multicut", refine=refine)
    images = [disc_image((48, 64)), np.zeros((48, 64, 3), np.uint8)]
    first, second = label_images(images, DiscEncoder(), config)
    assert np.array_equal(masks_of(first)[0], images[0][..., 0] > 0)
    assert isinstance(first.found, Instances)
    assert first.found.method == "multicut"
    assert first.optimality is not None
    assert first.optimality.objective < 0
    assert first.optimality.gap == pytest.approx(0, abs=0.1)
    assert second.found == Reason.NO_FOREGROUND
    assert second.optimality == Optimality(objective=0, gap=0)


def test_refinement_finds_the_edge() -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    image[17:33, 16:34] = 200  # its edge lies off the patches
    features = DiscEncoder().encode([image])[0]
    coarse = masks_of(label_features(features, image, (48, 64), PLAIN))[0]
    fine = masks_of(label_features(features, image, (48, 64), LabellingConfig(promerge=EVERY_PATCH)))[0]
    truth = image[..., 0] > 0
    assert np.count_nonzero(fine ^ truth) < np.count_nonzero(coarse ^ truth)


def test_refinement_takes_crops_by_groups_that_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "_MAX_MASK_PIXELS", 12 * 48 * 64)
    image = disc_image((48, 64))
    found = [
        Candidates(
            masks=np.zeros((count, 6, 8), bool),
            scores=np.zeros(count, np.float32),
            resized_hwc=image,
            size=(48, 64),
            tile=None,
            device="cpu",
            optimality=None,
        )
        for count in (2, 3, 4, 5, 0, 20, 1, 1)
    ]
    groups = list(group_candidates(found))
    assert [item for group in groups for item in group] == found
    assert [[len(item.masks) for item in group] for group in groups] == [[2, 3, 4], [5, 0], [20], [1, 1]]
    assert list(group_candidates([])) == []


def test_a_mask_that_refinement_changes_too_much_is_dropped() -> None:
    image = disc_image((48, 64))
    features = torch.zeros(6, 8, 2)
    features[..., 1] = 1
    features[0:1, 6:7] = torch.tensor([1.0, 0.0])  # an object where the image shows none
    assert isinstance(label_features(features, image, (48, 64), PLAIN).found, Instances)
    strict = LabellingConfig(min_refined_iou=1.0, promerge=EVERY_PATCH)
    assert label_features(features, image, (48, 64), strict).found == Reason.REFINED_AWAY


def test_features_that_are_not_finite_reject_the_image() -> None:
    features = torch.ones(6, 8, 2)
    features[3, 4, 1] = torch.nan
    image = disc_image((48, 64))
    assert label_features(features, image, (48, 64), PLAIN).found == Reason.NON_FINITE


def test_instances_are_ordered_and_what_vanishes_is_left_out() -> None:
    masks = np.zeros((4, 4, 6), bool)
    masks[0, 0, 5] = True  # vanishes at half the size, which takes pixels 1, 3, 5 of each row 1, 3
    masks[1, 2:, :2] = True
    masks[2, :2, :2] = True
    masks[3, :, 2:] = True
    scores = np.array([0.9, 0.5, 0.5, 0.5], np.float32)
    instances = make_instances(masks, scores, (2, 3), "promerge")
    assert instances.areas.tolist() == [4, 1, 1]
    assert instances.boxes_xyxy.tolist() == [[1, 0, 3, 2], [0, 0, 1, 1], [0, 1, 1, 2]]
    assert np.isnan(instances.stabilities).all()
    nothing = make_instances(masks[:0], scores[:0], (2, 3), "promerge")
    assert (len(nothing), nothing.boxes_xyxy.shape) == (0, (0, 4))


def test_what_was_looked_at_becomes_a_row() -> None:
    record = ImageRecord(image_id="a", path="a")
    optimality = Optimality(objective=-2.5, gap=0.1)
    rows = [
        make_outcome(record, (96, 128), "digest", Labels(found=reason, optimality=optimality))
        for reason in (Reason.NO_BACKGROUND, Reason.NON_FINITE)
    ]
    assert [(row.status, row.height, row.width) for row in rows] == [
        (Status.NO_OBJECT, 96, 128),
        (Status.REJECTED, 96, 128),
    ]
    assert rows[0].sha256 == "digest"
    assert rows[0].optimality == optimality


def test_warming_up_changes_nothing() -> None:
    image = disc_image((48, 64))
    features = DiscEncoder().encode([image])[0]
    config = LabellingConfig(promerge=EVERY_PATCH)
    before = masks_of(label_features(features, image, (48, 64), config))
    warm_up(config)
    assert np.array_equal(masks_of(label_features(features, image, (48, 64), config)), before)


def test_shares_out_of_range() -> None:
    with pytest.raises(ConfigurationError, match="component_fraction"):
        LabellingConfig(component_fraction=1.1)


def scene() -> np.ndarray:
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
    masks = masks_of(label_images([scene()], DiscEncoder(), config)[0])
    ious = [np.count_nonzero(mask & small) / np.count_nonzero(mask | small) for mask in masks]
    # Tiles of 64 x 64 on 48 x 64 pixels: a patch is 8 x 10.7 pixels of the image.
    assert max(ious) > 0.4
    large = scene()[..., 0] > 0
    large[110:] = False
    (whole,) = masks_of(label_images([scene()], DiscEncoder(), replace(config, tiling=TilingConfig()))[0])
    assert any(np.array_equal(mask, whole) for mask in masks)
    assert np.count_nonzero(whole & large) / np.count_nonzero(whole | large) > 0.8
    assert len(masks) == 2
    fewer = replace(config, tiling=TilingConfig(tile=64, tile_min_patches=20))
    assert len(masks_of(label_images([scene()], DiscEncoder(), fewer)[0])) == 1


@pytest.mark.parametrize("method", ["promerge", "multicut"])
def test_a_tile_takes_its_background_from_the_whole(method: Literal["promerge", "multicut"]) -> None:
    """A tile that a bright object all but fills: by its border the object would be the background."""
    config = replace(PLAIN, method=method, tiling=TilingConfig(tile=64, tile_min_patches=1))
    features = torch.zeros(6, 8, 2)
    features[..., 0] = 1
    features[4:, 5:] = torch.tensor([0.0, 1.0])
    image = np.zeros((48, 64, 3), np.uint8)
    (alone,) = masks_of(label_features(features, image, (48, 64), config))
    assert alone[40, 45]
    background = np.zeros((12, 16), bool)
    background[10:, 13:] = True
    tile = Tile(box_xyxy=(64, 48, 128, 96), background=background)
    # The dark corner is background; the bright object is cut by the tile's inner edges.
    assert label_features(features, image, (96, 128), config, tile).found == Reason.REFINED_AWAY
    # The same as a tile on the other side, whose edges there are the image's.
    background = np.zeros((6, 8), bool)
    background[4:, 5:] = True
    whole = Tile(box_xyxy=(0, 0, 64, 48), background=background)
    (bright,) = masks_of(label_features(features, image, (48, 64), config, whole))
    assert np.array_equal(bright, ~alone)
