"""A run's state as bytes: tensors and plain values, written by torch and read without running anything."""

from __future__ import annotations

import io
from typing import Any

import torch

from engine.errors import ObjectMissing, StoreError
from engine.objects.object_store import ObjectStore

CHECKPOINT_KEY = "checkpoint.pt"


def write_checkpoint(output: ObjectStore, state: dict[str, Any]) -> None:
    """Put a state in the place of the one before, in one step."""
    sink = io.BytesIO()
    torch.save(state, sink)
    output.write(CHECKPOINT_KEY, sink.getvalue())


def read_checkpoint(output: ObjectStore) -> dict[str, Any] | None:
    """The state that was written last, on the CPU, or None. Raises StoreError for a damaged one."""
    try:
        data = output.read(CHECKPOINT_KEY)
    except ObjectMissing:
        return None
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise almost anything from inside the unpickler
        raise StoreError(
            f"no whole checkpoint at {output.uri}/{CHECKPOINT_KEY} ({type(error).__name__}): "
            "give another --output"
        ) from error
    return state
