"""Joining Ray: a cluster that is there, or a local one for this run."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from typing import Literal

import ray
from ray.exceptions import RaySystemError

from engine.errors import ConfigurationError, UsageError
from jobs.cli.console import exit_on_sigterm
from jobs.cli.flags import ClusterFlags

_CONNECT_TIMEOUT_S = 10


@dataclass(frozen=True, kw_only=True)
class ClusterResources:
    """What a job has of the cluster that it joined: the device that networks run on, and the CPUs and GPUs
    that no other job has taken; no GPUs where the device is the CPU."""

    device: Literal["cpu", "cuda"]
    cpus: float
    gpus: float


def connect(flags: ClusterFlags) -> ClusterResources:
    """Connect this process to Ray and say to what.

    Without an address this is the cluster of the submitted job that this process is, elsewhere as `local`,
    which starts a Ray of this machine's size on the loopback interface that ends with this process; `auto`
    and HOST:PORT join a running cluster. Raises UsageError where there is no such cluster, ConfigurationError
    where it has not the device.
    """
    address = flags.address or os.environ.get("RAY_ADDRESS", "local")
    if ":" in address:
        _check_that_someone_listens(address)
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    # Of a worker that is given up, not every answer is looked at.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    try:
        if address == "local":
            ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, RaySystemError) as error:
        if address == "local":
            raise UsageError(
                f"a local Ray does not start ({error}); its logs are in /tmp/ray/session_latest/logs"
            ) from error
        raise UsageError(
            f"cannot join Ray at {address!r} ({error}); start one with `ray start --head`, "
            "or leave --address out for a local one"
        ) from error
    exit_on_sigterm()
    found, free = ray.cluster_resources(), ray.available_resources()
    kind = "a local Ray" if address == "local" else f"Ray at {ray.get_runtime_context().gcs_address}"
    cpus, gpus = found.get("CPU", 0.0), found.get("GPU", 0.0)
    print(f"joined {kind}: {len(ray.nodes())} node(s), {cpus:g} CPUs, {gpus:g} GPUs", flush=True)
    device = choose_device(flags.device, gpus)
    return ClusterResources(
        device=device, cpus=free.get("CPU", 0.0), gpus=free.get("GPU", 0.0) if device == "cuda" else 0.0
    )


def leave_cluster() -> None:
    """Disconnect from Ray, and end it where it is a local one."""
    ray.shutdown()


def choose_device(asked: str, num_gpus: float) -> Literal["cpu", "cuda"]:
    """cpu or cuda, for what --device asked. Raises ConfigurationError where there is no GPU."""
    if asked == "cuda" and num_gpus < 1:
        raise ConfigurationError(
            "--device cuda, but this Ray has no GPU: leave --device out, or join one that has"
        )
    return "cuda" if asked != "cpu" and num_gpus >= 1 else "cpu"


def largest_node_cpus() -> float:
    """CPUs of the joined cluster's largest node, which bounds what one actor can get."""
    return max(float(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])


def _check_that_someone_listens(address: str) -> None:
    """Raise UsageError for a HOST:PORT without a server; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no Ray at {address!r} ({error}): --address takes local, auto or HOST:PORT"
        ) from error
