"""A trained network as a file: its tensors and its configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

import safetensors
import safetensors.torch
import torch

from engine.encoders.weights import check_fit, digest_state
from engine.errors import ObjectMissing, StoreError, TransientError, WeightsError
from engine.objects.object_store import read_uri
from engine.solo.config import SoloConfig
from engine.solo.network import SoloNetwork, build_network

Settings = TypeVar("Settings")
_METADATA_KEY = "maskmill-solo"


def pack_network(state: Mapping[str, torch.Tensor], config: SoloConfig) -> bytes:
    """A .safetensors file of the network's state, with the configuration in its metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    metadata = {_METADATA_KEY: json.dumps(asdict(config), sort_keys=True)}
    data: bytes = safetensors.torch.save(tensors, metadata)
    return data


def load_network(uri: str, device: torch.device) -> tuple[SoloNetwork, SoloConfig, str]:
    """The network of a file at a path or s3:// URI, in evaluation mode, its configuration and its digest.

    Raises WeightsError for a file that is missing or broken or holds something else.
    """
    try:
        data = read_uri(uri)
    except ObjectMissing as error:
        raise WeightsError(f"no weights at {uri!r}: give the .safetensors of a trained network") from error
    except (StoreError, TransientError) as error:
        raise WeightsError(f"cannot read the weights {uri!r}: {error}") from error
    config = _read_config(data, uri)
    try:
        state = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError) as error:
        raise WeightsError(f"weights {uri!r} are not a complete .safetensors file: {error}") from error
    network = build_network(config, pretrained=False)
    check_fit(state, network.state_dict(), f"weights {uri!r} do not fit their own configuration")
    network.load_state_dict(state)
    return network.to(device).eval().requires_grad_(False), config, digest_state(state)


def _read_config(data: bytes, uri: str) -> SoloConfig:
    # The format: the length of the header, 8 bytes, little-endian, then the header in JSON.
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        settings = json.loads(header["__metadata__"][_METADATA_KEY])
        return settings_from(SoloConfig, settings)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{uri!r} is not a network written by jobs/train_solo.py ({type(error).__name__}): give its "
            "network.safetensors"
        ) from error


def settings_from(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """A configuration from its JSON form, the inverse of `asdict`: lists become tuples again.

    >>> settings_from(SoloConfig, json.loads(json.dumps(asdict(SoloConfig())))) == SoloConfig()
    True
    """
    hints = get_type_hints(kind)
    made = {
        field.name: settings_from(hints[field.name], values[field.name])
        if is_dataclass(hints[field.name])
        else _tuples(values[field.name])
        for field in fields(kind)  # type: ignore[arg-type]
    }
    return kind(**made)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
