import numpy as np
import pytest

from engine.errors import ConfigurationError
from engine.evaluation.ground_truth import AnnotatedImage
from engine.evaluation.linear_probe import (
    LabelledPatches,
    ProbeConfig,
    area_under_curve,
    draw_patches,
    foreground_auc,
    foreground_patches,
    pixel_features,
)
from engine.masks.boxes import mask_boxes_xyxy
from engine.masks.rle import encode_rles


def truth(*masks: np.ndarray, size: tuple[int, int] = (8, 12)) -> AnnotatedImage:
    stack = np.array(masks, bool).reshape(-1, *size)
    return AnnotatedImage(
        coco_id=None,
        path="a.jpg",
        size=size,
        rles=encode_rles(stack),
        boxes_xywh=mask_boxes_xyxy(stack).astype(float),
        areas=np.ones(len(stack)),
        is_crowd=np.zeros(len(stack), bool),
    )


def patches(seed: int, separation: float, num_patches: int = 400) -> LabelledPatches:
    """Patches of two Gaussians in 3 dimensions whose means differ along the first."""
    rng = np.random.default_rng(seed)
    is_foreground = rng.random(num_patches) < 0.3
    features = rng.standard_normal((num_patches, 3))
    features[:, 0] += separation * is_foreground
    return draw_patches(features[None], is_foreground[None], ProbeConfig(), seed)


def test_patches_covered_by_more_than_half_are_foreground() -> None:
    mask = np.zeros((8, 12), bool)
    mask[:4, :5] = True  # patches of 4 x 4 pixels: one covered, one by a quarter
    other = np.zeros((8, 12), bool)
    other[4:, 6:10] = True  # half of two patches
    more = other.copy()
    more[7, 10] = True
    assert foreground_patches(truth(mask, other), (2, 3)).tolist() == [[1, 0, 0], [0, 0, 0]]
    assert foreground_patches(truth(mask, more), (2, 3)).tolist() == [[1, 0, 0], [0, 0, 1]]
    assert not foreground_patches(truth(), (2, 3)).any()
    # Patches of 8/3 x 12/5 pixels.
    assert foreground_patches(truth(mask), (3, 5)).astype(int).tolist() == [
        [1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]


def test_area_under_curve() -> None:
    is_positive = np.array([True, True, False])
    for scores, area in (([3, 2, 1], 1), ([1, 2, 3], 0), ([1, 1, 1], 0.5), ([3, 1, 2], 0.5)):
        assert area_under_curve(np.array(scores, float), is_positive) == area


def test_the_area_grows_with_the_separation_of_the_features() -> None:
    areas = [
        foreground_auc([patches(seed, separation) for seed in range(20)], ProbeConfig())
        for separation in (0.0, 1.0, 6.0)
    ]
    assert areas[0] == pytest.approx(0.5, abs=0.03)
    assert 0.6 < areas[1] < 0.9
    assert areas[2] > 0.97


def test_the_same_seed_gives_the_same_area() -> None:
    images = [patches(seed, 1.0) for seed in range(6)]
    first, again, other = (foreground_auc(images, ProbeConfig(seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_the_penalty_shrinks_the_probe_without_turning_it() -> None:
    strict, loose = (
        foreground_auc([patches(0, 3.0), patches(1, 3.0)], ProbeConfig(penalty=penalty))
        for penalty in (1e6, 1.0)
    )
    assert strict == pytest.approx(loose, abs=0.02)
    assert loose > 0.9


def test_drawn_patches_depend_on_seed_and_number_alone() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.standard_normal((5, 8, 3)), rng.random((5, 8)) < 0.5
    features[2, 3] = 0
    config = ProbeConfig(patches_per_image=10)
    first, again = (draw_patches(features, labels, config, 4) for _ in range(2))
    other = draw_patches(features, labels, config, 5)
    assert first.features.shape == (10, 3)
    assert np.array_equal(first.features, again.features)
    assert not np.array_equal(first.features, other.features)
    whole = draw_patches(features, labels, ProbeConfig(), 4)
    assert np.array_equal(whole.is_foreground, labels.ravel())
    lengths = np.linalg.norm(whole.features, axis=1)
    assert lengths[2 * 8 + 3] == 0
    assert np.delete(lengths, 2 * 8 + 3) == pytest.approx(1)


def test_pixel_features_are_the_patches_rgb_values() -> None:
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    features = pixel_features(image, (2, 3))
    assert features.shape == (2, 3, 12)
    assert features[1, 2] == pytest.approx(image[2:, 4:].ravel() / 255)


def test_pixels_separate_objects_that_are_brighter_than_their_background() -> None:
    rng = np.random.default_rng(0)
    images = []
    for number in range(8):
        mask = np.kron(rng.random((2, 3)) < 0.5, np.ones((4, 4))).astype(bool)
        image = np.where(mask[..., None], [200, 100, 100], [30, 60, 60]).astype(np.uint8)
        labels = foreground_patches(truth(mask), (2, 3))
        images.append(draw_patches(pixel_features(image, (2, 3)), labels, ProbeConfig(), number))
    assert foreground_auc(images, ProbeConfig()) > 0.95


def test_one_image_is_too_few() -> None:
    with pytest.raises(ConfigurationError, match="more images"):
        foreground_auc([patches(0, 1.0)], ProbeConfig())


def test_bounds_of_the_probe() -> None:
    for wrong in ({"train_share": 0.0}, {"train_share": 1.0}, {"patches_per_image": 0}, {"penalty": 0.0}):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            ProbeConfig(**wrong)
