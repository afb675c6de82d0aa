"""Checkpoints: from a file or S3 to tensors in timm's naming, without executing anything in them.

Read are .safetensors files and torch pickles (.pth, .pt, .bin), the latter with `weights_only=True`: tensors,
plain containers and, because the DINO release's full checkpoints hold one, `argparse.Namespace`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import safetensors
import safetensors.torch
import torch

from engine.encoders.layout import Layout, read_layout
from engine.errors import ObjectMissing, StoreError, TransientError, WeightsError
from engine.objects.object_store import read_uri

SAFETENSORS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".pth", ".pt", ".bin")
# A training checkpoint holds the network below one of these; DINO's teacher is the better of its two
# (Caron et al., arXiv 2104.14294, section 3.1), so it comes first.
_WRAPPERS = ("teacher", "student", "state_dict", "model")
# "module." is DistributedDataParallel's, "backbone." MultiCropWrapper's.
_PREFIXES = re.compile(r"^(?:module\.|backbone\.|_orig_mod\.)+")
# Everything behind the last block that a feature never sees: classifiers, poolings, projection heads.
_HEADS = re.compile(r"^(?:head|head_dist|fc_norm|attn_pool|dino_head|ibot_head|fc|projector|predictor)\.")
_NAMES_SHOWN = 4

State = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """A backbone's tensors, heads left out, names without prefixes; their layout where the file states it."""

    state: State
    layout: Layout | None


def read_weights(uri: str) -> Weights:
    """What a checkpoint at a path or s3:// URI holds.

    Accepted are a plain state dict and a training checkpoint with "teacher" (preferred), "student",
    "state_dict" or "model" in it. Raises WeightsError, in one line, for anything else.
    """
    data = _read_bytes(uri)
    state = backbone_state(parse_checkpoint(data, uri), uri)
    is_safetensors = PurePosixPath(uri).suffix.lower() == SAFETENSORS_SUFFIX
    return Weights(state=state, layout=read_layout(data, uri) if is_safetensors else None)


def _read_bytes(uri: str) -> bytes:
    try:
        return read_uri(uri)
    except ObjectMissing as error:
        raise WeightsError(f"no weights at {uri!r}: give hub, random, a file or s3://bucket/key") from error
    except (StoreError, TransientError) as error:
        raise WeightsError(f"cannot read the weights {uri!r}: {_first_line(error)}") from error


def parse_checkpoint(data: bytes, uri: str) -> Mapping[str, Any]:
    """What a checkpoint's bytes hold; `uri` tells the format by its suffix. Raises WeightsError."""
    suffix = PurePosixPath(uri).suffix.lower()
    if suffix == SAFETENSORS_SUFFIX:
        return _parse_safetensors(data, uri)
    if suffix in PICKLE_SUFFIXES:
        return _parse_pickle(data, uri)
    raise WeightsError(
        f"weights {uri!r} have an unknown suffix {suffix!r}: give a .safetensors, .pth, .pt or .bin file"
    )


def _parse_safetensors(data: bytes, uri: str) -> Mapping[str, Any]:
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(f"weights {uri!r} are no whole .safetensors file: {_first_line(error)}") from error


def _parse_pickle(data: bytes, uri: str) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise almost anything from inside the unpickler
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise WeightsError(
                f"weights {uri!r} hold more than tensors ({refused.group(1)}), and nothing else is read: "
                "save the state dict alone"
            ) from error
        # torch's own text advises weights_only=False, which would run what is in the file.
        raise WeightsError(
            f"weights {uri!r} are no whole torch checkpoint ({type(error).__name__})"
        ) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"weights {uri!r} hold a {type(content).__name__}, expected a state dict")
    return content


def backbone_state(checkpoint: Mapping[str, Any], uri: str) -> State:
    """The backbone's tensors within a checkpoint, by names without prefixes; heads are left out.

    >>> inner = {"module.backbone.cls_token": torch.ones(1), "module.head.mlp.0.weight": torch.ones(2)}
    >>> backbone_state({"teacher": inner, "epoch": 100}, "full.pth")
    {'cls_token': tensor([1.])}
    """
    for wrapper in _WRAPPERS:
        if isinstance(checkpoint.get(wrapper), Mapping):
            return backbone_state(checkpoint[wrapper], uri)
    tensors = {
        _PREFIXES.sub("", str(name)): value
        for name, value in checkpoint.items()
        if isinstance(value, torch.Tensor)
    }
    state = drop_heads(tensors)
    if not state:
        raise WeightsError(f"weights {uri!r} hold no network: found {_shown(map(str, checkpoint))}")
    return state


def drop_heads(state: Mapping[str, torch.Tensor]) -> State:
    """The tensors that are no part of a classifier, a pooling or a projection head."""
    return {name: tensor for name, tensor in state.items() if not _HEADS.match(name)}


def check_fit(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], what: str) -> None:
    """Raise WeightsError unless both hold the same names with the same shapes; `what` names the pair."""
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
    """SHA-256 in hex over names, shapes, types and bytes of tensors, in the order of their names.

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
    more = f" and {len(listed) - _NAMES_SHOWN} more" if len(listed) > _NAMES_SHOWN else ""
    return (", ".join(listed[:_NAMES_SHOWN]) or "nothing") + more


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
