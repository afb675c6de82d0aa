"""A training's state in its output: tensors and plain values, read back without executing pickled code."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch

from engine.errors import ObjectMissing, StoreError
from engine.objects.object_store import ObjectStore

CHECKPOINT_KEY = "checkpoint.pt"


def write_checkpoint(output: ObjectStore, state: Mapping[str, Any]) -> None:
    """Replace the last checkpoint atomically."""
    sink = io.BytesIO()
    torch.save(dict(state), sink)
    output.write(CHECKPOINT_KEY, sink.getvalue())


def read_checkpoint(output: ObjectStore) -> dict[str, Any] | None:
    """The last checkpoint, on the CPU, or None. Raises StoreError if it is damaged."""
    try:
        data = output.read(CHECKPOINT_KEY)
    except ObjectMissing:
        return None
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise almost anything from inside the unpickler
        raise StoreError(
            f"the checkpoint {output.uri}/{CHECKPOINT_KEY} is damaged ({type(error).__name__}): "
            "give another --output"
        ) from error
    return state
