"""What the workers of one run agree on; alone, each is right by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed

from engine.errors import ConfigurationError

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class WorkerContext:
    """Where a worker stands: its number of so many, and the device that it computes on."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def local_batch_size(self, batch_size: int) -> int:
        """Images of a batch that fall to each worker. Raises ConfigurationError where they do not divide.

        >>> WorkerContext(world_size=4).local_batch_size(32)
        8
        """
        if batch_size % self.world_size:
            raise ConfigurationError(
                f"batch_size {batch_size} does not divide among {self.world_size} workers: give a multiple"
            )
        return batch_size // self.world_size


def total_over_workers(value: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all workers."""
    if not torch.distributed.is_initialized():
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total


def mean_over_workers(value: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all workers."""
    if not torch.distributed.is_initialized():
        return value
    return total_over_workers(value) / torch.distributed.get_world_size()


def from_first_worker(value: float, device: torch.device) -> float:
    """The first worker's number."""
    if not torch.distributed.is_initialized():
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.broadcast(shared, src=0)
    return float(shared)


def from_all_workers(item: Item) -> list[Item]:
    """Everybody's item, in the order of their numbers."""
    if not torch.distributed.is_initialized():
        return [item]
    gathered: list[Item] = [item] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, item)
    return gathered
