from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from engine.errors import ConfigurationError
from engine.evaluation.ground_truth import AnnotatedImage
from engine.evaluation.protocol import EvaluationProtocol
from engine.images.tiling import TilingConfig
from engine.labelling.config import LabellingConfig
from engine.masks.boxes import mask_boxes_xyxy
from engine.masks.rle import encode_rles
from engine.objects.memory import MemoryObjects
from engine.proposals.config import ProMergeConfig
from engine.store.selection import SelectionConfig
from engine.sweep.feature_cache import EncodedImage, FeatureCache
from engine.sweep.points import PointResult, SweepPoint, SweptImage, evaluate_points

SIZE = (48, 64)
PLAIN = LabellingConfig(method="promerge", refine="none", promerge=ProMergeConfig(stride=1))
CASES = (((1, 3), (1, 3)), ((2, 5), (4, 6)))  # rows and columns of an object on 6 x 8 patches


def truth_of(number: int) -> AnnotatedImage:
    (top, bottom), (left, right) = CASES[number]
    mask = np.zeros((1, *SIZE), bool)
    mask[0, top * 8 : bottom * 8, left * 8 : right * 8] = True
    x0, y0, x1, y1 = mask_boxes_xyxy(mask)[0]
    return AnnotatedImage(
        coco_id=None,
        path=f"{number}.png",
        size=SIZE,
        rles=encode_rles(mask),
        boxes_xywh=np.array([[x0, y0, x1 - x0, y1 - y0]], float),
        areas=np.array([mask.sum()], float),
        is_crowd=np.zeros(1, bool),
    )


@pytest.fixture
def cache() -> FeatureCache:
    """Features that separate each image's object from its background."""
    cache = FeatureCache(MemoryObjects())
    for number, ((top, bottom), (left, right)) in enumerate(CASES):
        features = np.zeros((6, 8, 2), np.float16)
        features[..., 1] = 1
        features[top:bottom, left:right] = (1, 0)
        image = EncodedImage(features_hwc=features, resized_hwc=np.zeros((*SIZE, 3), np.uint8), size=SIZE)
        cache.write(str(number), image)
    return cache


def point(config: LabellingConfig, *keys: str | None) -> SweepPoint:
    images = (SweptImage(truth=truth_of(number), key=key) for number, key in enumerate(keys))
    return SweepPoint(config=config, images=tuple(images))


def run(
    points: list[SweepPoint], cache: FeatureCache, protocol: EvaluationProtocol
) -> tuple[list[PointResult], list[int]]:
    progress: list[int] = []
    with ThreadPoolExecutor(1) as workers:
        return list(evaluate_points(points, protocol, cache, workers, progress.append)), progress


def test_points_are_evaluated_in_order(cache: FeatureCache) -> None:
    blind = replace(PLAIN, promerge=replace(PLAIN.promerge, min_background=1.0))
    results, progress = run([point(blind, "0", "1"), point(PLAIN, "0", "1")], cache, EvaluationProtocol())
    assert [result.masks["AP"] for result in results] == pytest.approx([0, 1])
    assert [result.masks_per_image for result in results] == [0, 1]
    assert progress == [1, 2, 3, 4]
    assert results[1].cpu_s > 0


def test_an_image_that_could_not_be_read_counts_as_empty(cache: FeatureCache) -> None:
    (result,), _ = run([point(PLAIN, "0", None)], cache, EvaluationProtocol())
    assert result.masks["AR@100"] == 0.5
    assert run([], cache, EvaluationProtocol()) == ([], [])


def test_selection_is_over_all_images_of_a_point(cache: FeatureCache) -> None:
    # Both objects have the same score, so the top half is both of them, as in a store.
    for selection, recall in (
        (SelectionConfig(top_percent=50), 1),
        (SelectionConfig(min_score=1.5), 0),
        (SelectionConfig(max_per_image=1), 1),
    ):
        (result,), _ = run([point(PLAIN, "0", "1")], cache, EvaluationProtocol(selection=selection))
        assert result.boxes["AR@100"] == recall


def test_tiles_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="leave tile out"):
        point(replace(PLAIN, tiling=TilingConfig(tile=32)), "0")
