import pickle
from dataclasses import replace

import pytest
import torch

from engine.errors import ConfigurationError
from engine.pretraining.views import ViewConfig, ViewMaker

CONFIG = ViewConfig(global_size=32, local_size=16, num_local=3)
PLAIN = ViewConfig(
    global_size=32,
    local_size=16,
    num_local=0,
    colour_strength=0,
    window_scale=(0.999, 1),
    global_scale=(0.2, 0.5),
)


def make(config, image, labels=None, seed=0):
    torch.manual_seed(seed)
    regions = torch.zeros(image.shape[1:], dtype=torch.uint8) if labels is None else labels
    return ViewMaker(config, 8).make(image, regions)


def coloured(height=40, width=64):
    """Left half red, right half blue, and the halves as regions."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[0, :, : width // 2] = image[2, :, width // 2 :] = 200
    labels = torch.zeros(height, width, dtype=torch.uint8)
    labels[:, width // 2 :] = 1
    return image, labels


def test_shapes_and_types():
    views = make(CONFIG, *coloured())
    assert views.global_views.shape == (2, 3, 32, 32)
    assert views.local_views.shape == (3, 3, 16, 16)
    assert views.labels.shape == (2, 4, 4)
    assert {part.dtype for part in views} == {torch.uint8}


def test_the_same_seed_gives_the_same_views_and_another_does_not():
    image, labels = coloured()
    first, same, other = (make(CONFIG, image, labels, seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first.global_views, other.global_views)


def test_patches_have_the_label_of_their_centre():
    """However views are cropped and mirrored, patches with a red centre are region 0, blue ones region 1."""
    image, labels = coloured()
    seen = set()
    for seed in range(20):
        views = make(PLAIN, image, labels, seed)
        middles = views.global_views[:, :, 4::8, 4::8]
        # Blur mixes the colours at the border.
        clear = (middles[:, 0].int() - middles[:, 2].int()).abs() > 100
        is_blue = middles[:, 2] > middles[:, 0]
        assert torch.equal(is_blue[clear], views.labels[clear] == 1)
        seen |= set(views.labels.unique().tolist())
    assert seen == {0, 1}


def test_windows_are_placed_on_small_regions_as_often_as_on_large_ones():
    image, labels = torch.zeros(3, 100, 120, dtype=torch.uint8), torch.zeros(100, 120, dtype=torch.uint8)
    for rows, columns in ((slice(2), slice(2)), (slice(60, 62), slice(80, 82))):
        image[0, rows, columns], labels[rows, columns] = 255, 3
    small = ViewConfig(
        global_size=32, num_local=0, colour_strength=0, window_scale=(0.01, 0.02), global_scale=(0.999, 1)
    )

    def share_with_small_region(region_share):
        config = replace(small, region_share=region_share)
        views = [make(config, image, labels, seed).global_views for seed in range(100)]
        return sum(bool((view[0, 0] > 20).any()) for view in views) / len(views)

    assert share_with_small_region(0) < 0.2
    assert 0.3 < share_with_small_region(0.8) < 0.6
    assert share_with_small_region(1) < 0.7


def test_grey_images_stay_grey_and_get_speckle():
    image = torch.full((3, 48, 48), 100, dtype=torch.uint8)
    views = [make(CONFIG, image, seed=seed) for seed in range(8)]
    assert all(torch.equal(v.global_views[:, 0], v.global_views[:, 2]) for v in views)
    deviations = [float(v.global_views[0].float().std()) for v in views]
    assert min(deviations) == 0
    assert max(deviations) > 5


def test_one_pixel_is_enough():
    views = make(CONFIG, torch.full((3, 1, 1), 9, dtype=torch.uint8))
    assert views.global_views.shape == (2, 3, 32, 32)


def test_view_makers_pickle():
    maker = pickle.loads(pickle.dumps(ViewMaker(CONFIG, 8)))
    assert maker.make(*coloured()).labels.shape == (2, 4, 4)


def test_views_are_whole_patches_and_ranges_rise():
    with pytest.raises(ConfigurationError, match=r"views\.local_size 20 is no multiple of the patch size 8"):
        ViewMaker(ViewConfig(global_size=32, local_size=20), 8)
    with pytest.raises(ConfigurationError, match="window_scale are two rising numbers"):
        ViewConfig(window_scale=(0.5, 0.2))
    with pytest.raises(ConfigurationError, match="region_share is a share"):
        ViewConfig(region_share=1.5)
