"""Flags that several jobs have. This module imports no Ray, so that --help and mistakes answer at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from engine.bounds import Bounded, Count
from engine.training.settings import RunSettings


@dataclass(frozen=True, kw_only=True)
class ClusterFlags:
    """Where a job runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; auto uses the cluster's GPUs if it has any."""
    address: str | None = None
    """Ray to join: local (a new one on this machine), auto (the running cluster) or HOST:PORT. By default a
    submitted job joins its own cluster, and any other run is local."""


@dataclass(frozen=True, kw_only=True)
class TrainingFlags(Bounded):
    """Flags of a training that do not change its result."""

    run: Annotated[RunSettings, tyro.conf.arg(name="")] = field(default_factory=RunSettings)
    workers: Count | None = None
    """Workers that train together; default: one per GPU, or one without GPUs."""
    cache: Path = Path("~/.cache/maskmill/images")
    """Folder on each node for shrunk images and their superpixels; safe to delete between runs."""
