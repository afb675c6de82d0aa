"""Encoders: images to L2-normalised patch features (METHODS section 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.encoders.centring import FeatureStatistics, resolve_centring, summarise_features
from engine.encoders.encoder import DESCRIPTOR, Encoder, EncoderConfig, finite_rows
from engine.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

__all__ = [
    "Encoder",
    "EncoderConfig",
    "FeatureStatistics",
    "finite_rows",
    "load_encoder",
    "resolve_centring",
    "summarise_features",
]


def load_encoder(
    config: EncoderConfig,
    device: str,
    num_threads: int | None = None,
    statistics: FeatureStatistics | None = None,
) -> Encoder:
    """The encoder that `config` describes, ready on `device` ("cpu", "cuda", "cuda:1").

    `num_threads` is the number of CPU threads that torch may use in this **process** from now on; None leaves
    it unchanged. `statistics` are those of the corpus, for centring: without them centring "auto" is "none"
    (see `engine.encoders.centring`).

    Raises: ConfigurationError for an unavailable device, an image smaller than a patch, a layer that the
    encoder does not have, centring "corpus" without statistics, or weights for an encoder that takes none;
    WeightsError for an unknown architecture and for weights that are missing, damaged or of another network.
    """
    config.check_fixed_weights()
    import torch

    if num_threads is not None:
        if num_threads < 1:
            raise ConfigurationError(f"num_threads must be at least 1, got {num_threads}")
        torch.set_num_threads(num_threads)
    torch_device = _find_device(device)
    # timm takes seconds to import, and the descriptor does not need it.
    if config.name == DESCRIPTOR:
        from engine.encoders.descriptor import DescriptorEncoder

        return DescriptorEncoder(config, torch_device, statistics)
    from engine.encoders.vit import load_vit

    return load_vit(config, torch_device, statistics)


def _find_device(name: str) -> torch.device:
    """The device of a name. Raises ConfigurationError if torch does not know it or this machine lacks it."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"unknown device {name!r}: give cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"no device {name!r} here: torch sees {torch.cuda.device_count()} CUDA devices; give cpu"
        )
    return device
