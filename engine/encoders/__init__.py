"""Encoders: images to L2-normalised patch features (METHODS section 1)."""

from __future__ import annotations

from engine.encoders.encoder import DESCRIPTOR, Encoder, EncoderConfig, finite_rows
from engine.errors import ConfigurationError

__all__ = ["Encoder", "EncoderConfig", "finite_rows", "load_encoder"]


def load_encoder(config: EncoderConfig, device: str, num_threads: int | None = None) -> Encoder:
    """The encoder that `config` describes, ready on `device` ("cpu", "cuda", "cuda:1").

    `num_threads` is the number of CPU threads that torch may use in this **process** from now on; None leaves
    it as it is.

    Raises: ConfigurationError for a device that is not there, an image smaller than a patch or weights for an
    encoder that takes none; WeightsError for an unknown architecture and for weights that are missing, broken
    or of another network.
    """
    config.check_fixed_weights()
    import torch

    if num_threads is not None:
        if num_threads < 1:
            raise ConfigurationError(f"num_threads must be at least 1, got {num_threads}")
        torch.set_num_threads(num_threads)
    try:
        torch_device = torch.device(device)
    except RuntimeError as error:
        raise ConfigurationError(f"unknown device {device!r}: give cpu, cuda or cuda:N") from error
    if torch_device.type == "cuda" and (torch_device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"no device {device!r} here: torch sees {torch.cuda.device_count()} CUDA devices; give cpu"
        )
    # timm takes seconds to import, and the descriptor does without.
    if config.name == DESCRIPTOR:
        from engine.encoders.descriptor import DescriptorEncoder

        return DescriptorEncoder(config, torch_device)
    from engine.encoders.vit import load_vit

    return load_vit(config, torch_device)
