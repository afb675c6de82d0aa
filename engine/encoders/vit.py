"""Any timm VisionTransformer or Eva as an encoder (METHODS section 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.device import autocast, reproducible, upload_images
from engine.encoders.backbone import Backbone, load_backbone, patch_size_of
from engine.encoders.centring import FeatureStatistics, Normaliser
from engine.encoders.encoder import EncoderConfig, check_images, patch_grid
from engine.encoders.facets import keep_facet
from engine.encoders.precision import resolve_precision


def load_vit(
    config: EncoderConfig, device: torch.device, statistics: FeatureStatistics | None = None
) -> VitEncoder:
    """The encoder of a timm ViT on `device`. Raises WeightsError, ConfigurationError."""
    return VitEncoder(load_backbone(config), config, device, statistics)


class VitEncoder:
    """A facet of a transformer's block; see `engine.encoders.Encoder`.

    Batches are padded with black images to `batch_size`, so that all run through the same kernels and an
    image's features do not depend on the number of images.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: EncoderConfig,
        device: torch.device,
        statistics: FeatureStatistics | None = None,
    ) -> None:
        """Takes the backbone over: whatever follows the facet is removed, and it moves to `device`."""
        self.name = config.name
        self.weights_digest = backbone.weights_digest
        self.patch_size = patch_size_of(backbone.model)
        self.grid = patch_grid(config.image_size, self.patch_size, config.name)
        self.image_size = (self.grid[0] * self.patch_size[0], self.grid[1] * self.patch_size[1])
        self.feature_size = keep_facet(backbone.model, config.facet, config.layer)
        self._normalise = Normaliser(config, statistics, self.feature_size, device)
        self.centring_digest = self._normalise.digest
        self._model = backbone.model.to(device)
        self._mean = torch.tensor(backbone.mean, device=device)
        self._std = torch.tensor(backbone.std, device=device)
        self._batch_size = config.batch_size
        self._precision = resolve_precision(config.precision, device)
        self._device = device

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """B images uint8 (H, W, 3) -> float16 (B, h, w, C) on the encoder's device; see `Encoder.encode`."""
        check_images(images, self.patch_size)
        if not images:
            return torch.zeros((0, *self.grid, self.feature_size), dtype=torch.float16, device=self._device)
        return torch.cat([self._normalise(features)[:count] for features, count in self._raw_batches(images)])

    def encode_raw(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """B images uint8 (H, W, 3) -> float32 (B, h, w, C); see `Encoder.encode_raw`."""
        check_images(images, self.patch_size)
        if not images:
            return torch.zeros((0, *self.grid, self.feature_size), device=self._device)
        return torch.cat([features[:count] for features, count in self._raw_batches(images)])

    def _raw_batches(self, images: Sequence[NDArray[np.uint8]]) -> Iterator[tuple[torch.Tensor, int]]:
        """Raw features of a full batch, padding included, and how many of its images are not padding."""
        for start in range(0, len(images), self._batch_size):
            batch = images[start : start + self._batch_size]
            yield self._encode_batch(batch), len(batch)

    @torch.inference_mode()
    def _encode_batch(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        pixels = upload_images(images, self._batch_size, self._device).float() / 255.0
        inputs = ((pixels - self._mean) / self._std).permute(0, 3, 1, 2).contiguous()
        with reproducible(self._device), autocast(self._device, self._precision):
            tokens = self._model.forward_features(inputs)
        features = tokens[:, self._model.num_prefix_tokens :].float()
        height, width = (size // patch for size, patch in zip(inputs.shape[2:], self.patch_size, strict=True))
        grids: torch.Tensor = features.reshape(self._batch_size, height, width, self.feature_size)
        return grids
