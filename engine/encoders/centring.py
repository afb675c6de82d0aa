"""Centring: subtracting a mean feature before features are normalised.

A constant added to all keys of an attention cancels in its softmax, so training leaves it free, and raw
cosines of keys depend on it. The keys of DINOv2 share a vector so large that their cosines lie above 0.7,
and no threshold on cosines fits them. The thresholds published for DINO fit its raw keys; the embedded
encoder needs no centring either. Projecting out the position bias of a ViT as well (principal directions of a
black image's features) gained nothing.

    config = EncoderConfig(name="dinov2")
    encoder = load_encoder(replace(config, centring="none"), device)
    statistics = summarise_features(encoder.encode_raw(images), config.name)  # a few dozen images
    config = resolve_centring(config, statistics)
    encoder = load_encoder(config, device, statistics=statistics)

To get equal features later or elsewhere, store `config.describe()` and `statistics.to_json()`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.encoders.encoder import EncoderConfig
from engine.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    import torch

# At this length two patches of the corpus have a mean cosine of 0.25, more than the threshold at which
# ProMerge calls two patches similar (0.2). Measured: DINOv2 ViT-S/14 0.92, the embedded encoder 0.17.
_MAX_RESULTANT_LENGTH = 0.5


@dataclass(frozen=True, kw_only=True)
class FeatureStatistics:
    """Statistics of an encoder's raw features over a sample of a corpus.

    `mean` holds C float32 values, the mean of all patches. `resultant_length` is the length of the mean of
    the L2-normalised features: 1 if all have one direction, 0 if directions cancel.
    """

    mean: tuple[float, ...]
    resultant_length: float
    num_images: int

    def __post_init__(self) -> None:
        if not self.mean or not all(map(math.isfinite, (*self.mean, self.resultant_length))):
            raise ConfigurationError("feature statistics must be finite numbers: measure them again")

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the JSON form."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        """The statistics as JSON; `from_json` restores them exactly.

        >>> FeatureStatistics(mean=(0.5, 0.0), resultant_length=0.25, num_images=3).to_json()
        b'{"mean": [0.5, 0.0], "num_images": 3, "resultant_length": 0.25}'
        """
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> FeatureStatistics:
        """Raises StoreError for anything that `to_json` does not write."""
        try:
            return cls.from_fields(json.loads(data))
        except ValueError as error:
            raise StoreError(f"feature statistics are damaged ({error})") from error

    @classmethod
    def from_fields(cls, fields: Any) -> FeatureStatistics:
        """The statistics from their fields, as JSON holds them. Raises StoreError if they are damaged."""
        try:
            return cls(
                mean=tuple(float(value) for value in fields["mean"]),
                resultant_length=float(fields["resultant_length"]),
                num_images=int(fields["num_images"]),
            )
        except (ValueError, TypeError, KeyError, ConfigurationError) as error:
            raise StoreError(f"feature statistics are damaged ({type(error).__name__}: {error})") from error


def summarise_features(features: Iterable[torch.Tensor], name: str) -> FeatureStatistics:
    """Statistics of raw features of the encoder `name`, one tensor (h, w, C) per image.

    A few dozen images are enough. Images with non-finite features are skipped. The result depends on the
    images and their order alone. Raises ConfigurationError if no image has finite features.
    """
    totals: list[NDArray[np.float64]] = []
    unit_totals: list[NDArray[np.float64]] = []
    for image in features:
        values = image.cpu().numpy().astype(np.float64)
        if np.isfinite(values).all():
            lengths = np.linalg.norm(values, axis=2, keepdims=True)
            totals.append(values.mean(axis=(0, 1)))
            unit_totals.append((values / np.maximum(lengths, np.finfo(np.float32).tiny)).mean(axis=(0, 1)))
    if not totals:
        raise ConfigurationError(
            f"no image with finite features of {name}: give a corpus with readable images, or centring none "
            "or image"
        )
    return FeatureStatistics(
        mean=tuple(np.mean(totals, axis=0).astype(np.float32).tolist()),
        resultant_length=float(np.linalg.norm(np.mean(unit_totals, axis=0))),
        num_images=len(totals),
    )


def centre(raw_bhwc: torch.Tensor, config: EncoderConfig, statistics: FeatureStatistics) -> torch.Tensor:
    """Raw features float32 (B, h, w, C), centred as `config` says and L2-normalised, float16."""
    return Normaliser(config, statistics, raw_bhwc.shape[3], raw_bhwc.device)(raw_bhwc)


def resolve_centring(config: EncoderConfig, statistics: FeatureStatistics) -> EncoderConfig:
    """The configuration with centring "auto" replaced by "corpus" or "none".

    >>> shared = FeatureStatistics(mean=(3.0, 0.1), resultant_length=0.92, num_images=30)
    >>> resolve_centring(EncoderConfig(), shared).centring
    'corpus'
    """
    if config.centring != "auto":
        return config
    needs_centring = statistics.resultant_length > _MAX_RESULTANT_LENGTH
    return replace(config, centring="corpus" if needs_centring else "none")


class Normaliser:
    """Centres raw features as configured, then scales them to length 1.

    `digest` is the digest of the corpus statistics, or empty if they are not used.
    """

    def __init__(
        self,
        config: EncoderConfig,
        statistics: FeatureStatistics | None,
        feature_size: int,
        device: torch.device,
    ) -> None:
        """Centring "auto" is resolved by the statistics; without them it is "none".

        Raises: ConfigurationError for centring "corpus" without statistics, or statistics of another width.
        """
        import torch

        if statistics is not None:
            config = resolve_centring(config, statistics)
        self._per_image = config.centring == "image"
        self.digest = statistics.digest if statistics is not None and config.centring == "corpus" else ""
        self._mean: torch.Tensor | None = None
        if config.centring != "corpus":
            return
        if statistics is None:
            raise ConfigurationError(
                "centring corpus needs the mean feature of the corpus: measure it, or give centring image"
            )
        if len(statistics.mean) != feature_size:
            raise ConfigurationError(
                f"the corpus mean has {len(statistics.mean)} channels, features of {config.name!r} have "
                f"{feature_size}: measure it with the same encoder, facet and layer"
            )
        self._mean = torch.tensor(statistics.mean, device=device)

    @property
    def centres(self) -> bool:
        """Whether a mean is subtracted."""
        return self._per_image or self._mean is not None

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """float32 (B, h, w, C) -> float16, each feature of length 1; zero vectors stay 0."""
        import torch

        if self._per_image:
            features = features - features.mean(dim=(1, 2), keepdim=True)
        if self._mean is not None:
            features = features - self._mean
        return torch.nn.functional.normalize(features, dim=-1).to(torch.float16)
