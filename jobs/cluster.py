"""Joining Ray: a cluster that is there, or a local one for this run."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass

import ray
from ray.exceptions import RaySystemError

from engine.errors import ConfigurationError, UsageError

_CONNECT_TIMEOUT_S = 10


@dataclass(frozen=True, kw_only=True)
class Resources:
    """CPUs and GPUs of a cluster, or what of them is free."""

    cpus: float
    gpus: float


def join_cluster(address: str | None) -> Resources:
    """Connect this process to Ray and say to what.

    None joins the cluster of the submitted job that this process is, and is `local` elsewhere; `local`
    starts a Ray of this machine's size on the loopback interface, which ends with this process; `auto` and
    HOST:PORT join a running cluster. Raises UsageError where there is no such cluster.
    """
    if address is None:
        address = os.environ.get("RAY_ADDRESS", "local")
    if ":" in address:
        _check_that_someone_listens(address)
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
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
    found = ray.cluster_resources()
    resources = Resources(cpus=found.get("CPU", 0), gpus=found.get("GPU", 0))
    kind = "a local Ray" if address == "local" else f"Ray at {ray.get_runtime_context().gcs_address}"
    print(
        f"joined {kind}: {len(ray.nodes())} node(s), {resources.cpus:g} CPUs, {resources.gpus:g} GPUs",
        flush=True,
    )
    return resources


def leave_cluster() -> None:
    """Disconnect from Ray, and end it where it is a local one."""
    ray.shutdown()


def free_resources() -> Resources:
    """What no other job of the joined cluster has taken."""
    found = ray.available_resources()
    return Resources(cpus=found.get("CPU", 0), gpus=found.get("GPU", 0))


def choose_device(asked: str, num_gpus: float) -> str:
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
