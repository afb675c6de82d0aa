"""Connect to Ray: to a running cluster, or to a local one that ends with this process."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ray
from ray.exceptions import RaySystemError
from ray.job_config import JobConfig

from engine.errors import ConfigurationError, UsageError
from jobs.cli.console import exit_on_sigterm
from jobs.cli.flags import ClusterFlags

_CONNECT_TIMEOUT_S = 10


@dataclass(frozen=True, kw_only=True)
class ClusterResources:
    """The device that networks run on, and the CPUs and GPUs that are free for this job.

    `gpus` is 0 if the device is the CPU.
    """

    device: Literal["cpu", "cuda"]
    cpus: float
    gpus: float


def connect(flags: ClusterFlags) -> ClusterResources:
    """Connect this process to Ray and print to which cluster.

    `local` starts a Ray of this machine's size on the loopback interface, which ends with this process;
    `auto` and HOST:PORT join a running cluster. Without an address, a submitted job joins its own cluster,
    and any other process starts a local one. Raises UsageError if there is no such cluster, and
    ConfigurationError if it lacks the device.
    """
    address = flags.address or os.environ.get("RAY_ADDRESS", "local")
    if ":" in address:
        _check_reachable(address)
    options = {"logging_level": logging.ERROR, "log_to_driver": False, "job_config": _job_config()}
    # Results of a worker that was dropped are never fetched; Ray would report their errors.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    try:
        if address == "local":
            ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **options)
        else:
            ray.init(address=address, **options)
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


def _job_config() -> JobConfig:
    """Settings by which workers import engine, actors and jobs from where this process does.

    By default, Ray puts the driver's working folder first on the workers' path, and a folder engine/ of the
    user's project in it would hide ours. Ray leaves the working folder out for jobs of its own client.
    """
    root = Path(__file__).resolve().parents[2]
    return JobConfig(_client_job=True, _py_driver_sys_path=[str(root)])


def leave_cluster() -> None:
    """Disconnect from Ray; a local one ends."""
    ray.shutdown()


def choose_device(asked: str, num_gpus: float) -> Literal["cpu", "cuda"]:
    """The device for --device `asked`; auto is cuda if there is a GPU.

    Raises ConfigurationError for cuda without a GPU.

    >>> choose_device("auto", 2), choose_device("auto", 0), choose_device("cpu", 2)
    ('cuda', 'cpu', 'cpu')
    """
    if asked == "cuda" and num_gpus < 1:
        raise ConfigurationError(
            "--device cuda, but this Ray has no GPU: leave --device out, or join a cluster with GPUs"
        )
    return "cuda" if asked != "cpu" and num_gpus >= 1 else "cpu"


def largest_node_cpus() -> float:
    """CPUs of the cluster's largest node: the most that one actor can have."""
    return max(float(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])


def _check_reachable(address: str) -> None:
    """Raise UsageError if nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no Ray at {address!r} ({error}): --address takes local, auto or HOST:PORT"
        ) from error
