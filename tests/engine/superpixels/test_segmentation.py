import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from skimage import data

from engine.errors import ConfigurationError
from engine.superpixels import METHODS, SuperpixelConfig, segment
from engine.superpixels.alternatives import CountSearch
from engine.superpixels.boundary import BoundaryConfig
from engine.superpixels.hierarchy import HierarchyConfig, build_hierarchy
from engine.superpixels.quality import achievable_segmentation_accuracy
from engine.superpixels.segmentation import to_unit_rgb

small_images = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])).flatmap(
    lambda shape: arrays(np.uint8, shape)
)


def count_components(labels):
    return sum(ndimage.label(labels == label)[1] for label in range(labels.max() + 1))


@pytest.fixture(scope="module")
def photograph():
    return data.astronaut()[40:200, 120:330]


@settings(max_examples=60, deadline=None)
@given(image=small_images, num_segments=st.integers(1, 100))
def test_the_hierarchy_gives_exactly_the_requested_number(image, num_segments):
    labels = segment(image, SuperpixelConfig(num_segments=num_segments))
    assert labels.dtype == np.int32
    assert labels.shape == image.shape[:2]
    assert labels.max() + 1 == min(num_segments, labels.size)
    assert count_components(labels) == labels.max() + 1


@settings(max_examples=30, deadline=None)
@given(image=small_images)
def test_labels_are_numbered_in_the_order_of_first_pixels(image):
    _, first_pixels = np.unique(segment(image, SuperpixelConfig(num_segments=7)), return_index=True)
    assert (np.diff(first_pixels) > 0).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1, 3), (3, 50, 1), (24, 36, 3)])
@pytest.mark.parametrize("value", [0, 128])
def test_every_method_accepts_any_size_and_constant_images(method, shape, value):
    labels = segment(np.full(shape, value, np.uint8), SuperpixelConfig(method=method, num_segments=6))
    assert labels.shape == shape[:2]
    assert np.unique(labels).tolist() == list(range(labels.max() + 1))


@pytest.mark.parametrize(
    ("method", "tolerance"),
    [("hierarchy", 0), ("slic", 0.1), ("felzenszwalb", 0.1)],
)
def test_the_number_of_segments_on_a_photograph_is_close_and_reproducible(photograph, method, tolerance):
    labels = segment(photograph, SuperpixelConfig(method=method, num_segments=100))
    assert abs(labels.max() + 1 - 100) <= 100 * tolerance
    assert (
        segment(photograph, SuperpixelConfig(method=method, num_segments=100)).tobytes() == labels.tobytes()
    )


def test_segments_of_a_constant_image_have_similar_sizes():
    labels = segment(np.full((60, 80), 77, np.uint8), SuperpixelConfig(num_segments=20))
    areas = np.bincount(labels.ravel())
    assert areas.min() > 240 / 3
    assert areas.max() < 240 * 3


@pytest.mark.parametrize("speckled", [False, True])
def test_a_grey_disc_is_segmented_in_a_noisy_image(speckled):
    rows, columns = np.mgrid[:90, :130]
    disc = (rows - 40) ** 2 + (columns - 70) ** 2 < 20**2
    rng = np.random.default_rng(0)
    # Multiplicative speckle of 4 looks as in radar images, or weak additive noise as in camera images.
    noise = rng.gamma(4, 1 / 4, disc.shape) if speckled else 1 + rng.normal(0, 0.05, disc.shape)
    image = np.clip(np.where(disc, 0.6, 0.15) * noise, 0, 1)
    labels = segment(image, SuperpixelConfig(num_segments=40))
    assert achievable_segmentation_accuracy(labels, disc.astype(int)) > (0.97 if speckled else 0.995)


def test_every_encoding_of_a_grey_image_gives_the_same_labels(photograph):
    grey = photograph[..., 1]
    config = SuperpixelConfig(num_segments=50)
    expected = segment(grey, config)
    for form in (grey[..., None], grey.repeat(3).reshape(*grey.shape, 3), grey.astype(np.uint16) * 257):
        assert np.array_equal(segment(form, config), expected)
    assert np.array_equal(segment(grey / np.float32(255), config), expected)


def test_cuts_are_nested_and_join_all_regions_up_to_the_level(photograph):
    hierarchy = build_hierarchy(to_unit_rgb(photograph), BoundaryConfig(), HierarchyConfig())
    assert (np.diff(hierarchy.heights) >= 0).all()
    finer = hierarchy.leaves
    for share in (0.2, 0.6, 0.95):
        level = float(np.quantile(hierarchy.heights, share))
        labels = hierarchy.cut_at_level(level)
        assert len(np.unique(labels.ravel() * hierarchy.num_leaves + finer.ravel())) == finer.max() + 1
        assert labels.max() + 1 == 1 + np.count_nonzero(hierarchy.heights > level)
        merged, absorbed = hierarchy.merges[hierarchy.heights <= level].T
        label_of_leaf = np.zeros(hierarchy.num_leaves, np.int32)
        label_of_leaf[hierarchy.leaves] = labels
        assert np.array_equal(label_of_leaf[merged], label_of_leaf[absorbed])
        finer = labels


def test_cutting_at_a_level(photograph):
    lowest = segment(photograph, SuperpixelConfig(level=0.0))
    highest = segment(photograph, SuperpixelConfig(level=1e9))
    assert lowest.max() > 1000
    assert highest.max() == 0


def test_more_segments_than_cells_make_the_cells_smaller():
    image = np.random.default_rng(1).integers(0, 256, (30, 41, 3)).astype(np.uint8)
    assert segment(image, SuperpixelConfig(num_segments=900)).max() + 1 == 900


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((4, 4), np.int32),
        np.full((4, 4), 1.5),
        np.full((4, 4), np.nan),
    ],
)
def test_images_of_another_shape_or_dtype_are_refused(image):
    with pytest.raises(ValueError, match=r"image"):
        segment(image, SuperpixelConfig())


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (SuperpixelConfig, {"method": "quickshift"}),
        (SuperpixelConfig, {"num_segments": 0}),
        (SuperpixelConfig, {"level": 0.1, "method": "slic"}),
        (SuperpixelConfig, {"level": -0.1}),
        (SuperpixelConfig, {"slic_compactness": 0.0}),
        (SuperpixelConfig, {"felzenszwalb_min_size_px": 0}),
        (CountSearch, {"tolerance": -0.1}),
        (CountSearch, {"max_runs": 0}),
        (HierarchyConfig, {"cell_side_px": 0}),
        (HierarchyConfig, {"floor": -1.0}),
        (HierarchyConfig, {"colour_weight": -1.0}),
        (HierarchyConfig, {"area_scale_px": 0.0}),
        (HierarchyConfig, {"length_power": -0.1}),
        (BoundaryConfig, {"colour_weights": (1.0,)}),
        (BoundaryConfig, {"colour_scales_px": (0.1, 1.0, 2.0)}),
        (BoundaryConfig, {"texture_weights": (0.0, -1.0, 0.0)}),
        (BoundaryConfig, {"placing_weight": -1.0}),
    ],
)
def test_settings_out_of_range_name_the_field(kind, wrong):
    name = next(iter(wrong))
    with pytest.raises(ConfigurationError, match=name):
        dataclasses.replace(kind(), **wrong)
