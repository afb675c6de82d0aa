"""Flags that several jobs have. This module does without Ray, so that --help and mistakes answer at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from engine.errors import ConfigurationError
from engine.training.settings import RunSettings


@dataclass(frozen=True, kw_only=True)
class ClusterFlags:
    """Where a job runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; auto takes the cluster's GPUs where it has some."""
    address: str | None = None
    """Which Ray: local, auto (the running cluster), or HOST:PORT. Default: the cluster of a submitted job,
    otherwise local."""


@dataclass(frozen=True, kw_only=True)
class TrainingFlags:
    """How a network is trained, beside all that decides what it becomes."""

    run: Annotated[RunSettings, tyro.conf.arg(name="")] = field(default_factory=RunSettings)
    workers: int | None = None
    """Workers that train together; by default one for each GPU, without GPUs one."""
    cache: Path = Path("~/.cache/maskmill/superpixels")
    """Folder on each node for images at the network's size and their superpixels; safe to delete between
    runs."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigurationError(f"--workers is at least 1, got {self.workers}")
