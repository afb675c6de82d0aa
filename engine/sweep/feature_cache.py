"""A cache of features in files, so that an image is encoded once however often it is labelled.

    <digest of the encoder and of how images are read>/<sha256 of the image's file>.safetensors

A file holds `features`, float16 (h, w, C), of the image `resized`, uint8 RGB (H, W, 3), and `size`, the
(height, width) of the upright image.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from engine.corpora import Corpus
from engine.encoders import Encoder
from engine.errors import ImageError, StoreError
from engine.images.decoding import decode_image
from engine.images.resizing import resize_image
from engine.labelling.config import LabellingConfig
from engine.objects.object_store import ObjectStore
from engine.types import ImageRecord

_SUFFIX = ".safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedImage:
    """An image of `size` = (height, width), resized to what the encoder takes, and its features."""

    features_hwc: NDArray[np.float16]
    resized_hwc: NDArray[np.uint8]
    size: tuple[int, int]


class FeatureCache:
    """Encoded images in an object store, by key."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def read(self, key: str) -> EncodedImage:
        """Read an encoded image. Raises ObjectMissing, and StoreError if the file is damaged."""
        try:
            tensors = safetensors.numpy.load(self._objects.read(key))
            size = tensors["size"].tolist()
            return EncodedImage(
                features_hwc=tensors["features"], resized_hwc=tensors["resized"], size=(size[0], size[1])
            )
        except (safetensors.SafetensorError, KeyError) as error:
            raise StoreError(f"{key} in {self._objects.uri} is damaged ({error}): remove it") from error

    def write(self, key: str, image: EncodedImage) -> None:
        """Write an encoded image."""
        tensors: dict[str, NDArray[Any]] = {
            "features": image.features_hwc,
            "resized": image.resized_hwc,
            "size": np.array(image.size, np.int64),
        }
        self._objects.write(key, safetensors.numpy.save(tensors))

    def keys(self, folder: str) -> frozenset[str]:
        """The keys of the images in a folder."""
        return frozenset(key for key in self._objects.keys(f"{folder}/") if key.endswith(_SUFFIX))


@dataclass(kw_only=True)
class CachedImages:
    """The result of `cache_features`.

    `keys` and `sizes`, (height, width), are by image id; `rejected` holds the reasons of images that could
    not be read; the encoder took `encoder_cpu_s` of CPU time for `num_encoded` new images.
    """

    keys: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    num_encoded: int = 0
    encoder_cpu_s: float = 0.0
    encoder_wall_s: float = 0.0


def cache_features(
    corpus: Corpus,
    records: Sequence[ImageRecord],
    encoder: Encoder,
    config: LabellingConfig,
    cache: FeatureCache,
    on_progress: Callable[[int], None],
) -> CachedImages:
    """Encode the images that the cache lacks; one batch of them is in memory at a time.

    `config` decides how images are decoded and how many are encoded together; `on_progress` gets the number
    of images done. Raises TransientError if an image cannot be read for now.
    """
    folder, cached = _folder(encoder, config), CachedImages()
    present = cache.keys(folder)
    images: dict[str, NDArray[np.uint8]] = {}
    for done, record in enumerate(records, start=1):
        try:
            data = corpus.read(record)
            image_hwc = decode_image(data, config.decoding)
        except ImageError as error:
            cached.rejected[record.image_id] = str(error)
            continue
        key = f"{folder}/{hashlib.sha256(data).hexdigest()}{_SUFFIX}"
        cached.keys[record.image_id] = key
        cached.sizes[record.image_id] = (image_hwc.shape[0], image_hwc.shape[1])
        if key not in present:
            images[key] = image_hwc
        if len(images) == config.encoder.batch_size:
            _encode(images, encoder, cache, cached)
            images = {}
        on_progress(done)
    _encode(images, encoder, cache, cached)
    return cached


def _encode(
    images: Mapping[str, NDArray[np.uint8]], encoder: Encoder, cache: FeatureCache, cached: CachedImages
) -> None:
    """Encode images by key, which is timed, and write them."""
    if not images:
        return
    resized = [resize_image(image_hwc, encoder.image_size) for image_hwc in images.values()]
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    features = encoder.encode(resized).cpu().numpy()
    cached.encoder_cpu_s += time.process_time() - cpu_s
    cached.encoder_wall_s += time.perf_counter() - wall_s
    cached.num_encoded += len(images)
    for i, (key, image_hwc) in enumerate(images.items()):
        encoded = EncodedImage(
            features_hwc=np.ascontiguousarray(features[i]),
            resized_hwc=resized[i],
            size=(image_hwc.shape[0], image_hwc.shape[1]),
        )
        cache.write(key, encoded)


def _folder(encoder: Encoder, config: LabellingConfig) -> str:
    """Digest of everything that decides an image's features."""
    settings = asdict(config.encoder)
    settings.pop("weights")  # identified by their digest
    decisive = [settings, encoder.weights_digest, encoder.centring_digest, asdict(config.decoding)]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
