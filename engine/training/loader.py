"""Batches of samples, made in processes of the worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from torch.utils.data import DataLoader, Dataset

from engine.training.order import SampleNumber

Sample = TypeVar("Sample")
Batch = TypeVar("Batch")


def load_batches(
    maker: Dataset[Sample],
    numbers: Iterator[list[SampleNumber]],
    num_processes: int,
    collate: Callable[[list[Sample]], Batch],
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Batches of the samples with these numbers, made in `num_processes` processes, or in this one for 0."""
    return iter(
        DataLoader(
            maker,
            batch_sampler=numbers,  # type: ignore[arg-type]
            num_workers=num_processes,
            collate_fn=collate,
            pin_memory=pin_memory,
            # Forked workers would inherit the threads and locks of torch and Ray.
            multiprocessing_context="spawn" if num_processes else None,
        )
    )
