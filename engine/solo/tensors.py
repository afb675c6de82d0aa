"""Dataclasses of tensors that move to a device as a whole."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Self

import torch


class TensorGroup:
    """Base of frozen dataclasses of tensors, tensor groups, tuples of these, and plain values."""

    def to(self, device: torch.device) -> Self:
        """A copy with every tensor on `device`; plain values, None among them, stay as they are."""
        moved = {field.name: _to(getattr(self, field.name), device) for field in fields(self)}  # type: ignore[arg-type]
        return replace(self, **moved)  # type: ignore[type-var]


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, TensorGroup):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_to(item, device) for item in value)
    return value
