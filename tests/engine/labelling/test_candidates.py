from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.images.crops import Crop
from engine.images.tiling import TilingConfig
from engine.labelling.candidates import (
    Candidates,
    find_candidates,
    group_candidates,
    make_labels,
    refine_candidates,
)
from engine.labelling.config import LabellingConfig, NetworkConfig
from engine.labelling.methods import Proposals, propose_masks
from engine.masks.packing import make_instances
from engine.masks.rle import decode_rles
from engine.refine import refine_images
from engine.types import Reason

SIZE = (48, 64)
BLACK = np.zeros((*SIZE, 3), np.uint8)
PLAIN = LabellingConfig(refine="none")


def candidates(count: int) -> Candidates:
    return Candidates(
        crop=Crop.whole(BLACK, SIZE),
        masks=np.zeros((count, 6, 8), bool),
        scores=np.zeros(count, np.float32),
        device="cpu",
    )


def test_groups_are_refined_together_if_their_masks_fit_into_memory() -> None:
    found = [candidates(count) for count in (2, 3, 4, 5, 0, 20, 1, 1)]
    groups = list(group_candidates(found, max_mask_pixels=12 * 48 * 64))
    assert [item for group in groups for item in group] == found
    assert [[len(item.masks) for item in group] for group in groups] == [[2, 3, 4], [5, 0], [20], [1, 1]]
    assert list(group_candidates([])) == []


def test_masks_over_pixels_keep_their_resolution_and_scores() -> None:
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 3:20, 5:9] = True
    masks[1, 40, 60] = True
    scores = np.array([0.2, 0.7], np.float32)
    found = Candidates(crop=Crop.whole(BLACK, SIZE), masks=masks, scores=scores, device="cpu")
    (refined,) = refine_candidates([found], PLAIN, refine_images)
    labels = make_labels(refined, PLAIN)
    assert labels.instances is not None
    assert np.array_equal(decode_rles(labels.instances.rles, SIZE), masks[::-1])
    assert labels.instances.scores.tolist() == scores[::-1].tolist()


def test_proposals_over_pixels() -> None:
    masks = np.zeros((2, *SIZE), bool)
    masks[0, :16, :24] = True
    masks[1, 0, 0] = True
    proposals = Proposals(masks=masks, resolution="pixels", scores=np.array([1, 2], np.float32))
    assert proposals.areas_in_patches((6, 8)).tolist() == [6, 1 / 64]
    kept = proposals.keep(np.array([False, True]))
    assert kept.scores is not None
    assert (kept.scores.tolist(), kept.masks.sum(), kept.resolution) == ([2], 1, "pixels")
    with pytest.raises(ValueError, match="scores of their own"):
        Proposals(masks=masks, resolution="pixels")
    with pytest.raises(ValueError, match="2 masks need as many scores, got 1"):
        Proposals(masks=masks, scores=np.ones(1, np.float32))


def test_a_method_may_propose_masks_over_pixels_with_scores_of_its_own() -> None:
    masks = np.zeros((3, *SIZE), bool)
    masks[0, 16:32, 16:40] = True  # 6 patches
    masks[1, 16:32, 16:22] = True  # 1.5 patches
    masks[2, :16, :24] = True  # touches the left edge of the tile, which is an inner one
    tile = Crop(resized_hwc=BLACK, box_xyxy=(64, 0, 128, 48), size=(48, 128))
    seen: list[np.ndarray | None] = []

    def propose(features: object, image: object, config: object, background: Any) -> Proposals:
        seen.append(background)
        return Proposals(masks=masks, resolution="pixels", scores=np.array([1, 2, 3], np.float32))

    background = np.zeros((6, 16), bool)
    background[:, 12:] = True
    features = np.ones((6, 8, 1), np.float32)
    config = replace(PLAIN, tiling=TilingConfig(tile=64, tile_min_patches=2))
    found = find_candidates(tile, features, background, config, propose)
    assert isinstance(found, Candidates)
    assert np.array_equal(found.masks, masks[:1])
    assert found.scores.tolist() == [1]
    assert seen[0] is not None
    assert seen[0].tolist() == [[False] * 4 + [True] * 4] * 6


def test_proposals_over_patches() -> None:
    masks = np.ones((1, 2, 3), bool)
    proposals = Proposals(masks=masks)
    assert proposals.areas_in_patches((2, 3)).tolist() == [6]
    assert len(proposals.keep(np.array([False])).masks) == 0


def test_a_network_proposes_no_masks_among_patches() -> None:
    config = LabellingConfig(method="solo", network=NetworkConfig(weights="network.safetensors"))
    with pytest.raises(ValueError, match="'solo' proposes no masks"):
        propose_masks(np.ones((2, 3, 1), np.float16), BLACK, config)


def test_instances_are_ordered_and_masks_that_vanish_are_left_out() -> None:
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


def test_a_crop_whose_masks_all_vanish_is_refined_away() -> None:
    assert make_labels(candidates(1), PLAIN).reason == Reason.REFINED_AWAY
    assert make_labels(candidates(0), PLAIN).reason == Reason.REFINED_AWAY
