"""The layout of a network beyond its architecture's name, stored in the header of its .safetensors file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from engine.errors import WeightsError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_METADATA_KEY = "maskmill"
_LENGTH_BYTES = 8

Statistics = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a network differs from what timm builds by its architecture's name, and what inputs it expects.

    `patch_size` in pixels, `depth` in blocks; `mean` and `std` are of RGB values in [0, 1].
    """

    architecture: str
    patch_size: int
    depth: int
    mean: Statistics = IMAGENET_MEAN
    std: Statistics = IMAGENET_STD


def add_layout(data: bytes, layout: Layout) -> bytes:
    """The bytes of a .safetensors file with a layout in its header, where `read_layout` finds it.

    The library writes metadata in an order that changes from run to run; here it is always the same.
    """
    header, tensors = _split(data)
    header["__metadata__"] = {"format": "pt", _METADATA_KEY: json.dumps(asdict(layout), sort_keys=True)}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # tensors stay aligned
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + tensors


def read_layout(data: bytes, uri: str) -> Layout | None:
    """The layout in the bytes of a .safetensors file, or None if they state none.

    Raises WeightsError for a layout that is there and cannot be used.

    >>> import safetensors.torch, torch
    >>> layout = Layout(architecture="vit_tiny_patch16_224", patch_size=8, depth=6)
    >>> data = add_layout(safetensors.torch.save({"cls_token": torch.zeros(1)}), layout)
    >>> read_layout(data, "a.safetensors") == layout
    True
    >>> safetensors.torch.load(data)
    {'cls_token': tensor([0.])}
    """
    stated = _split(data)[0].get("__metadata__", {}).get(_METADATA_KEY)
    if stated is None:
        return None
    try:
        return _parse_layout(json.loads(stated))
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(
            f"weights {uri!r} describe their network in a way that is not understood "
            f"({type(error).__name__}: {error}): take the file as pretrain_encoder.py wrote it"
        ) from error


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the tensors: the format is the header's length as 8 bytes, little-endian, the header as
    JSON, and the tensors."""
    end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    return json.loads(data[_LENGTH_BYTES:end]), data[end:]


def _parse_layout(fields: dict[str, Any]) -> Layout:
    layout = Layout(
        architecture=str(fields["architecture"]),
        patch_size=int(fields["patch_size"]),
        depth=int(fields["depth"]),
        mean=_statistics(fields["mean"]),
        std=_statistics(fields["std"]),
    )
    if layout.patch_size < 1 or layout.depth < 1 or min(layout.std) <= 0:
        raise ValueError("patch_size, depth and std must be above 0")
    return layout


def _statistics(values: list[float]) -> Statistics:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
