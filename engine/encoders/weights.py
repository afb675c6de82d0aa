"""Checkpoints: tensors from a file or S3, without executing anything stored in them.

Read are .safetensors files and torch pickles (.pth, .pt, .ckpt, .bin), the latter with `weights_only=True`:
tensors, plain containers and, because the DINO release's full checkpoints hold one, `argparse.Namespace`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import safetensors
import safetensors.torch
import torch

from engine.encoders.formats import check_file_format
from engine.encoders.layout import Layout, read_layout
from engine.encoders.naming import State, drop_heads, find_prefix, translate_names
from engine.errors import ObjectMissing, StoreError, TransientError, WeightsError
from engine.objects.object_store import read_uri

SAFETENSORS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
_MAX_LISTED = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """All tensors of a checkpoint file, their names behind the keys of their containers
    (`teacher/backbone.cls_token`), and the layout if the file states it."""

    state: State
    layout: Layout | None


def read_weights(uri: str) -> Weights:
    """The content of a checkpoint at a path or s3:// URI.

    Raises: WeightsError, in one line, for a file that is missing, damaged, of another format or without
    tensors.
    """
    check_file_format(uri)
    data = _read_bytes(uri)
    content = parse_checkpoint(data, uri)
    state = dict(_flatten(content))
    if not state:
        raise WeightsError(f"weights {uri!r} hold no network: found {_shown(map(str, content))}")
    is_safetensors = PurePosixPath(uri).suffix.lower() == SAFETENSORS_SUFFIX
    return Weights(state=state, layout=read_layout(data, uri) if is_safetensors else None)


def select_network(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], uri: str
) -> State:
    """The tensors of the network in a checkpoint that holds most of the `expected` names, by timm's names.

    Prefixes are removed, heads left out. Names and shapes may still differ, see `check_fit`.

    >>> inner = {"module.backbone.cls_token": torch.ones(1), "module.head.mlp.0.weight": torch.ones(2)}
    >>> flat = {f"teacher/{name}": tensor for name, tensor in inner.items()}
    >>> select_network(flat, {"cls_token": torch.zeros(1)}, "full.pth")
    {'cls_token': tensor([1.])}

    Raises: WeightsError for a checkpoint without such a network, or with NaN or infinite values in it.
    """
    translated = translate_names(state)
    prefix = find_prefix(translated, expected)
    if prefix is None:
        raise WeightsError(
            f"weights {uri!r} do not fit: they hold hardly any tensor of the network, but {_shown(state)}"
        )
    network = drop_heads(
        {
            name[len(prefix) :]: tensor
            for name, tensor in translated.items()
            if name.startswith(prefix) and "/" not in name[len(prefix) :]
        }
    )
    for name, tensor in network.items():
        if not tensor.isfinite().all():
            raise WeightsError(
                f"weights {uri!r} have NaN or infinite values in {name}: give a checkpoint saved before its "
                "training diverged"
            )
    return network


def _flatten(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")


def _read_bytes(uri: str) -> bytes:
    try:
        return read_uri(uri)
    except ObjectMissing as error:
        raise WeightsError(f"no weights at {uri!r}: give hub, random, a file or s3://bucket/key") from error
    except (StoreError, TransientError) as error:
        raise WeightsError(f"cannot read the weights {uri!r}: {_first_line(error)}") from error


def parse_checkpoint(data: bytes, uri: str) -> Mapping[str, Any]:
    """The content of a checkpoint's bytes in the format of the suffix of `uri`. Raises WeightsError."""
    suffix = PurePosixPath(uri.lower().removesuffix(".tar")).suffix  # .pth.tar is no archive
    if suffix == SAFETENSORS_SUFFIX:
        return _parse_safetensors(data, uri)
    if suffix in PICKLE_SUFFIXES:
        return _parse_pickle(data, uri)
    raise WeightsError(
        f"weights {uri!r} have an unknown suffix {suffix!r}: give a .safetensors, .pth, .pt, .ckpt or "
        ".bin file"
    )


def _parse_safetensors(data: bytes, uri: str) -> Mapping[str, Any]:
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(
            f"weights {uri!r} are no complete .safetensors file: {_first_line(error)}"
        ) from error


def _parse_pickle(data: bytes, uri: str) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise almost anything from inside the unpickler
        if _is_torchscript(data):
            raise WeightsError(
                f"weights {uri!r} are a TorchScript archive: load it and save its state_dict() as a .pth file"
            ) from error
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise WeightsError(
                f"weights {uri!r} hold more than tensors ({refused.group(1)}), and nothing else is read: "
                "save the state dict alone"
            ) from error
        # torch's own text advises weights_only=False, which would run what is in the file.
        raise WeightsError(
            f"weights {uri!r} are no complete torch checkpoint ({type(error).__name__})"
        ) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"weights {uri!r} hold a {type(content).__name__}, expected a state dict")
    return content


def _is_torchscript(data: bytes) -> bool:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return any(PurePosixPath(name).name == "constants.pkl" for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def check_fit(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], what: str) -> None:
    """Raise WeightsError unless both hold the same names with the same shapes; `what` opens the message."""
    complaints = [
        f"{label} {_shown(names)}"
        for label, names in (
            ("missing", sorted(expected.keys() - state.keys())),
            ("not expected", sorted(state.keys() - expected.keys())),
            ("of another shape", _misshapen(state, expected)),
        )
        if names
    ]
    if complaints:
        raise WeightsError(f"{what}: {'; '.join(complaints)}")


def _misshapen(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    return [
        f"{name} {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(state.keys() & expected.keys())
        if state[name].shape != expected[name].shape
    ]


def digest_state(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 in hex of the names, shapes, types and bytes of tensors, in the order of their names.

    >>> one = {"a": torch.zeros(2), "b": torch.ones(1)}
    >>> digest_state(one) == digest_state(dict(reversed(one.items())))
    True
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _shown(names: Any) -> str:
    listed = list(names)
    more = f" and {len(listed) - _MAX_LISTED} more" if len(listed) > _MAX_LISTED else ""
    return (", ".join(listed[:_MAX_LISTED]) or "nothing") + more


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
