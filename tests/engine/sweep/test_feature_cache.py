from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.corpora import FolderCorpus
from engine.encoders import EncoderConfig
from engine.errors import ObjectMissing, StoreError
from engine.labelling.config import LabellingConfig
from engine.objects.memory import MemoryObjects
from engine.sweep.feature_cache import CachedImages, FeatureCache, cache_features


class CountingEncoder:
    name, feature_size, image_size, grid, weights_digest = "counting", 1, (16, 24), (2, 3), "fixed"
    centring_digest = ""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        self.batches.append(len(images))
        return torch.stack([torch.full((2, 3, 1), float(image[0, 0, 0])) for image in images]).half()


CONFIG = LabellingConfig(encoder=EncoderConfig(batch_size=2))


@pytest.fixture
def corpus(
    tmp_path: Path, photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]
) -> FolderCorpus:
    for seed in range(3):
        (tmp_path / f"{seed}.png").write_bytes(encode_image(photograph(seed), "PNG"))
    (tmp_path / "broken.png").write_bytes(b"no image")
    return FolderCorpus.open(str(tmp_path))


def fill(
    corpus: FolderCorpus, cache: FeatureCache, config: LabellingConfig = CONFIG
) -> tuple[CachedImages, list[int], list[int]]:
    encoder, progress = CountingEncoder(), []
    cached = cache_features(corpus, list(corpus.records()), encoder, config, cache, progress.append)
    return cached, encoder.batches, progress


def test_images_are_encoded_once(corpus: FolderCorpus) -> None:
    cache = FeatureCache(MemoryObjects())
    cached, batches, progress = fill(corpus, cache)
    assert batches == [2, 1]
    assert progress == [1, 2, 3]
    assert list(cached.keys) == ["0.png", "1.png", "2.png"]
    assert cached.sizes == dict.fromkeys(cached.keys, (48, 64))
    assert cached.rejected == {"broken.png": "not_an_image: not a JPEG, PNG, WEBP, TIFF, BMP file"}
    assert (cached.num_encoded, cached.encoder_wall_s > 0) == (3, True)
    again, batches, _ = fill(corpus, cache)
    assert batches == []
    assert again.keys == cached.keys
    assert again.num_encoded == 0


def test_cached_images_are_read_back(corpus: FolderCorpus) -> None:
    cache = FeatureCache(MemoryObjects())
    cached, _, _ = fill(corpus, cache)
    for key in cached.keys.values():
        image = cache.read(key)
        assert (image.features_hwc.dtype, image.features_hwc.shape) == (np.float16, (2, 3, 1))
        assert (image.resized_hwc.dtype, image.resized_hwc.shape) == (np.uint8, (16, 24, 3))
        assert (image.features_hwc == image.resized_hwc[0, 0, 0]).all()
        assert image.size == (48, 64)


def test_another_configuration_has_its_own_features(corpus: FolderCorpus) -> None:
    cache = FeatureCache(MemoryObjects())
    first, _, _ = fill(corpus, cache)
    other = replace(CONFIG, encoder=replace(CONFIG.encoder, image_size=240))
    second, batches, _ = fill(corpus, cache, other)
    assert batches == [2, 1]
    assert set(first.keys.values()).isdisjoint(second.keys.values())
    same, batches, _ = fill(corpus, cache, replace(CONFIG, refine="none"))
    assert batches == []
    assert same.keys == first.keys


def test_a_damaged_file_is_reported() -> None:
    objects = MemoryObjects()
    objects.write("a/b.safetensors", b"damaged")
    with pytest.raises(StoreError, match="remove it"):
        FeatureCache(objects).read("a/b.safetensors")
    with pytest.raises(ObjectMissing):
        FeatureCache(objects).read("a/c.safetensors")
