"""A labelling's identity: the network and the settings that a version records."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from engine.encoders import load_encoder
from engine.labelling.config import LabellingConfig


@dataclass(frozen=True, kw_only=True)
class NetworkDescription:
    """What sees the images, an encoder or a trained network: the (height, width) that it takes, the digest of
    its weights, and what a trained network says of itself."""

    image_size: tuple[int, int]
    weights_digest: str
    settings: dict[str, Any]


def describe_network(config: LabellingConfig) -> NetworkDescription:
    """Load what workers will load, so that mistakes answer at once. Raises WeightsError,
    ConfigurationError."""
    if config.method != "solo":
        encoder = load_encoder(config.encoder, device="cpu")
        return NetworkDescription(
            image_size=encoder.image_size, weights_digest=encoder.weights_digest, settings={}
        )
    from engine.labelling.network_labeller import CheckpointLabeller

    labeller = CheckpointLabeller(config, device="cpu")
    return NetworkDescription(
        image_size=labeller.image_size,
        weights_digest=labeller.weights_digest,
        settings=labeller.settings,
    )


def describe_labelling(config: LabellingConfig, network: NetworkDescription) -> dict[str, Any]:
    """All that decides the labels of an image but the weights, as a version's configuration holds it."""
    configuration: dict[str, Any] = asdict(config) | network.settings
    # Weights are known by their content, wherever they lie.
    configuration["encoder"].pop("weights")
    configuration.pop("earlier_weights")
    configuration["refine"] = "crf" if config.uses_crf else "none"
    return configuration
