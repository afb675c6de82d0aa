"""Ranks, and sums and exchanges between the workers of one training; a single worker is its own group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed

from engine.errors import ConfigurationError

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class WorkerContext:
    """A worker's rank, the world size, its device, and the CPUs reserved for it."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    num_cpus: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes checkpoints and results."""
        return self.rank == 0

    def local_batch_size(self, batch_size: int) -> int:
        """Images of a batch per worker. Raises ConfigurationError if the batch does not divide evenly.

        >>> WorkerContext(world_size=4).local_batch_size(32)
        8
        """
        if batch_size % self.world_size:
            raise ConfigurationError(
                f"batch_size {batch_size} does not divide among {self.world_size} workers: give a multiple"
            )
        return batch_size // self.world_size

    def local_slice(self, batch_size: int) -> slice:
        """This worker's part of a batch.

        >>> WorkerContext(rank=1, world_size=4).local_slice(32)
        slice(8, 16, None)
        """
        size = self.local_batch_size(batch_size)
        return slice(self.rank * size, (self.rank + 1) * size)


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
    """The value of rank 0, on every worker."""
    if not torch.distributed.is_initialized():
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.broadcast(shared, src=0)
    return float(shared)


def wait_for_all_workers() -> None:
    """Return once every worker has called this."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
