#!/usr/bin/env python
"""Show what maskmill finds on this machine: versions, devices, memory, S3 settings and encoders."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from engine import __version__
from engine.encoders import EncoderConfig, load_encoder
from engine.encoders.encoder import DESCRIPTOR, EMBEDDED
from engine.errors import MaskmillError
from jobs.cli.console import run_job

_LIBRARIES = ("ray", "torch", "torchvision", "timm", "numpy", "numba", "pyarrow", "boto3", "pydensecrf2")
_S3_VARIABLES = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION",
    "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
)  # fmt: skip
_SECRET_WORDS = ("KEY", "TOKEN")


@dataclass(frozen=True, kw_only=True)
class DoctorArguments:
    """Show what maskmill finds on this machine. Secrets are not shown.

    Exit codes: 0 done, 1 the default encoder cannot be loaded, 2 wrong use.
    """

    encoder: tuple[str, ...] = (EMBEDDED, DESCRIPTOR)
    """Encoders to load, by the names that the label jobs take; published weights are downloaded."""


def main(arguments: DoctorArguments) -> None:
    for what, found in find_all(arguments):
        print(f"{what + ':':14} {found}", flush=True)


def find_all(arguments: DoctorArguments) -> Iterator[tuple[str, str]]:
    """What is found, line by line: its name and its value."""
    yield "maskmill", f"{__version__} in {Path(__file__).resolve().parents[1]}"
    yield "Python", f"{platform.python_version()} in {sys.prefix}, on {platform.platform()}"
    for library in _LIBRARIES:
        yield library, version_of(library)
    yield "memory", memory_text()
    yield "devices", devices_text()
    yield "Ray address", os.environ.get("RAY_ADDRESS") or "not set: jobs start a Ray of their own"
    for name in _S3_VARIABLES:
        if name in os.environ:
            yield name, shown_value(name, os.environ[name])
    if not any(name in os.environ for name in _S3_VARIABLES):
        yield (
            "S3",
            f"no AWS variables; ~/.aws {'exists' if Path('~/.aws').expanduser().is_dir() else 'is missing'}",
        )
    for encoder in arguments.encoder:
        yield "encoder", encoder_text(encoder)


def version_of(library: str) -> str:
    """The installed version of a distribution.

    >>> version_of("no-such-library")
    'not installed'
    """
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def shown_value(name: str, value: str) -> str:
    """The value of an environment variable, without secrets.

    >>> shown_value("AWS_REGION", "eu-west-1"), shown_value("AWS_SECRET_ACCESS_KEY", "x")
    ('eu-west-1', 'set')
    """
    return "set" if any(word in name for word in _SECRET_WORDS) else value


def memory_text() -> str:
    """Cores and memory of this machine, and free space of the folder for temporary files."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{pages / 2**30:.1f} GiB, {cores} CPU cores for this process"


def devices_text() -> str:
    """The CUDA devices that torch sees."""
    import torch

    names = [
        f"cuda:{number} {torch.cuda.get_device_name(number)}" for number in range(torch.cuda.device_count())
    ]
    return ", ".join(names) or f"CPU only (torch built for CUDA {torch.version.cuda or '- none'})"


def encoder_text(name: str) -> str:
    """Whether an encoder loads, and the size of its features."""
    try:
        encoder = load_encoder(EncoderConfig(name=name), "cpu")
    except MaskmillError as error:
        return f"{name} does not load: {error}"
    height, width = encoder.grid
    return (
        f"{encoder.name} loads: {height} x {width} patches, weights {encoder.weights_digest[:12] or 'none'}"
    )


if __name__ == "__main__":
    run_job(DoctorArguments, main)
