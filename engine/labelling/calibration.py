"""Calibration: settings that depend on encoder and corpus, chosen from a few images without ground truth.

ProMerge's constants fit the cosines of DINO's keys. Other encoders have other distributions of cosines, on
which the same constants find nothing. For an encoder whose fit is not known, calibration centres its features
if they share a large constant vector, and sets every threshold on cosines that still has its default value:

- `promerge.tau_b`: the cosine that the same share of patch pairs exceeds as exceed 0.2 with DINO, unless that
  share is close to it already; the two similarities, half as large, follow in proportion.
- `multicut.biases`: as jobs/choose_bias.py chooses them.

The region tree has no such threshold: it compares features within an image only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from engine.corpora import Corpus
from engine.encoders import EncoderConfig, FeatureStatistics, finite_rows, load_encoder
from engine.encoders.centring import centre, resolve_centring, summarise_features
from engine.encoders.encoder import is_known_to_fit
from engine.encoders.precision import resolve_encoder
from engine.errors import ConfigurationError, ImageError, StoreError
from engine.images.decoding import DecodingConfig, decode_image
from engine.images.resizing import resize_image
from engine.labelling.config import LabellingConfig
from engine.proposals.bias import choose_biases, score_biases
from engine.proposals.config import MultiCutConfig, ProMergeConfig
from engine.types import Precision

_MAX_IMAGES = 24
# Images are taken from this many first ones, at equal distances: neighbours in a list are often alike.
_FIRST_IMAGES = 240
# Share of patch pairs above `tau_b` on DINO's keys: 0.31 to 0.42 on the images of its published examples.
_SIMILAR_SHARE = 0.37
_FITTING_SHARES = (0.25, 0.5)
_SAMPLED_PATCHES = 400
# Partitions for a dozen biases of this many images take about ten seconds.
_BIAS_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The choices for one encoder and one corpus.

    `precision` and `centring` replace "auto"; `statistics` are those of the corpus, None if the encoder is
    known to fit; `promerge` and `multicut` hold the fields that were chosen, by name.
    """

    precision: Precision
    centring: Literal["none", "image", "corpus"]
    statistics: FeatureStatistics | None
    promerge: dict[str, Any]
    multicut: dict[str, Any]

    def apply(self, config: LabellingConfig) -> LabellingConfig:
        """The configuration with the choices filled in."""
        return replace(
            config,
            encoder=replace(config.encoder, precision=self.precision, centring=self.centring),
            promerge=replace(config.promerge, **self.promerge),
            multicut=replace(config.multicut, **self.multicut),
        )

    def describe(self) -> str:
        """One line for people."""
        parts = [f"{self.precision}", f"centring {self.centring}"]
        parts += [f"promerge.{name} {value:g}" for name, value in self.promerge.items()]
        parts += [
            f"multicut.{name} {' '.join(f'{number:g}' for number in value)}"
            for name, value in self.multicut.items()
        ]
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """The calibration as JSON can hold it; `from_json` restores it exactly."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Calibration:
        """Raises StoreError for anything that `to_json` does not return."""
        try:
            statistics = fields["statistics"]
            return cls(
                precision=fields["precision"],
                centring=fields["centring"],
                statistics=None if statistics is None else FeatureStatistics.from_fields(statistics),
                promerge={str(name): float(value) for name, value in fields["promerge"].items()},
                multicut={str(name): tuple(map(float, value)) for name, value in fields["multicut"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(
                f"the calibration is damaged ({type(error).__name__}): label again with --overwrite"
            ) from error


def calibrate(corpus: Corpus, config: LabellingConfig, device: str) -> Calibration:
    """Choose the settings of `config` that are "auto" or at defaults which do not fit, on `device`.

    Encodes 24 images at most. The choice depends on the corpus, the configuration and the kind of device
    alone. Raises ConfigurationError if no image can be read.
    """
    encoder, features = measure_features(corpus, config.encoder, config.decoding, device)
    if features is None:
        return Calibration(
            precision=encoder.precision,  # type: ignore[arg-type]
            centring=encoder.centring,  # type: ignore[arg-type]
            statistics=None,
            promerge={},
            multicut={},
        )
    centred = centre(features.raw, encoder, features.statistics)
    multicut = choose_multicut(centred, config) if config.method == "multicut" else {}
    return Calibration(
        precision=encoder.precision,  # type: ignore[arg-type]
        centring=encoder.centring,  # type: ignore[arg-type]
        statistics=features.statistics,
        promerge=choose_promerge(centred, config.promerge),
        multicut=multicut,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredFeatures:
    """Raw features float32 (B, h, w, C) of a sample of a corpus, all finite, and their statistics."""

    raw: torch.Tensor
    statistics: FeatureStatistics


def measure_features(
    corpus: Corpus, config: EncoderConfig, decoding: DecodingConfig, device: str
) -> tuple[EncoderConfig, MeasuredFeatures | None]:
    """The configuration without "auto", and the sample that decided about centring.

    The sample is None, and nothing is encoded, if centring is given or the encoder is known to fit.
    """
    resolved = resolve_encoder(config, torch.device(device))
    if config.centring in ("none", "image") or is_known_to_fit(resolved):
        centring = "none" if config.centring in ("auto", "none") else config.centring
        if centring != "corpus":
            return replace(resolved, centring=centring), None
    encoder = load_encoder(replace(resolved, centring="none"), device)
    images = list(_sample_images(corpus, encoder.image_size, decoding))
    if not images:
        raise ConfigurationError(
            f"none of the first images of {corpus.uri} can be read, so the features of {config.name} cannot "
            "be centred: see the corpus, or give encoder.centring none"
        )
    starts = range(0, len(images), config.batch_size)
    raw = torch.cat([encoder.encode_raw(images[i : i + config.batch_size]).cpu() for i in starts])
    raw = raw[finite_rows(raw)]
    statistics = summarise_features(raw, config.name)
    return resolve_centring(resolved, statistics), MeasuredFeatures(raw=raw, statistics=statistics)


def _sample_images(
    corpus: Corpus, size: tuple[int, int], decoding: DecodingConfig
) -> Iterator[NDArray[np.uint8]]:
    """Some of the corpus's first images, resized to `size` = (height, width), without unreadable ones."""
    records = list(islice(corpus.records(), _FIRST_IMAGES))
    step = max(len(records) // _MAX_IMAGES, 1)
    for record in records[::step][:_MAX_IMAGES]:
        try:
            yield resize_image(decode_image(corpus.read(record), decoding), size)
        except ImageError:
            continue


def choose_promerge(features_bhwc: torch.Tensor, config: ProMergeConfig) -> dict[str, Any]:
    """Values for ProMerge's thresholds on cosines that are at their defaults, or {} if those fit.

    `features_bhwc` (B, h, w, C) are L2-normalised.
    """
    cosines = np.concatenate([_sample_cosines(features) for features in features_bhwc])
    default = ProMergeConfig()
    low, high = _FITTING_SHARES
    if low <= float((cosines > default.tau_b).mean()) <= high:
        return {}
    tau_b = round(float(np.quantile(cosines, 1 - _SIMILAR_SHARE)), 2)
    similarity = round(tau_b * default.merge_similarity / default.tau_b, 3)
    chosen = {
        "tau_b": tau_b,
        "max_background_similarity": similarity,
        "merge_similarity": similarity,
    }
    return {name: value for name, value in chosen.items() if getattr(config, name) == getattr(default, name)}


def _sample_cosines(features_hwc: torch.Tensor) -> NDArray[np.float32]:
    """Cosines of pairs of patches, evenly spread over one image's features (h, w, C)."""
    flat = features_hwc.reshape(-1, features_hwc.shape[2]).float().numpy()
    patches = flat[:: max(len(flat) // _SAMPLED_PATCHES, 1)]
    products: NDArray[np.float32] = patches @ patches.T
    return products[np.triu_indices(len(patches), k=1)]


def choose_multicut(features_bhwc: torch.Tensor, config: LabellingConfig) -> dict[str, Any]:
    """MultiCut's biases for L2-normalised features (B, h, w, C), or {} if `config` sets them."""
    if config.multicut.biases != MultiCutConfig().biases:
        return {}
    sample = features_bhwc[:: max(len(features_bhwc) // _BIAS_IMAGES, 1)][:_BIAS_IMAGES]
    names: Sequence[str] = [f"image {number}" for number in range(len(sample))]
    fast = replace(config.multicut, starts=1)
    return {"biases": choose_biases(list(score_biases(sample, names, fast, config.mask_filter)))}
