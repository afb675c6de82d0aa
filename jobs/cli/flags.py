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
    """How a training runs; none of this changes the network that it gives."""

    run: Annotated[RunSettings, tyro.conf.arg(name="")] = field(default_factory=RunSettings)
    workers: Count | None = None
    """Workers that train together; by default one for each GPU, or one without GPUs."""
    cache: Path = Path("~/.cache/maskmill/superpixels")
    """Folder on each node for resized images and their superpixels; may be deleted between runs."""
