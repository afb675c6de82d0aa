"""Run jobs as a user does: in other processes, on a local Ray or on a cluster of the test session."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

import numpy as np
import psutil
import pytest

from jobs.cli.console import run_job as exit_after

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster of 2 CPUs, started as in the README, and the environment for its clients."""

    address: str
    environment: dict[str, str]
    process: psutil.Popen

    def submit(self, *entrypoint: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit` from the repository's root."""
        command = [str(BIN / "ray"), "job", "submit", "--working-dir", ".", "--", *entrypoint]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    return ports


@contextmanager
def start_cluster(home: Path, object_store_bytes: int) -> Iterator[Cluster]:
    """Start a cluster of 2 CPUs, with its token in `home`."""
    port, dashboard, client, agent = _free_ports(4)
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    subprocess.run(
        [BIN / "ray", "get-auth-token", "--generate"], env=environment, check=True, capture_output=True
    )
    command = [
        BIN / "ray", "start", "--head", "--block", "--num-cpus=2",
        f"--object-store-memory={object_store_bytes}", f"--port={port}",
        f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}",
    ]  # fmt: skip
    process = psutil.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(dashboard)
        yield Cluster(address=f"127.0.0.1:{port}", environment=environment, process=process)
    finally:
        family = [*process.children(recursive=True), process]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=30)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with start_cluster(tmp_path_factory.mktemp("home"), 400_000_000) as cluster:
        yield cluster


@pytest.fixture
def roomy_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster with an object store of 1 GiB, for one test."""
    with start_cluster(tmp_path, 1 << 30) as cluster:
        yield cluster


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError("the Ray cluster of the tests did not come up")


@pytest.fixture
def run_job() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_job("label_folder", "--corpus", ...)` runs a job in another process, outside the repository."""

    def run(job: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *flags]
        return subprocess.run(
            command, cwd="/", env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture
def kill_driver() -> Callable[[subprocess.Popen[bytes]], None]:
    """`kill_driver(process)` kills a job and its local Ray, as a power cut does."""

    def kill(process: subprocess.Popen[bytes]) -> None:
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        # Processes of this Ray that outlive the driver must not linger.
        _, alive = psutil.wait_procs(family, timeout=5)
        for member in alive:
            member.kill()
        psutil.wait_procs(alive, timeout=10)

    return kill


@pytest.fixture
def run_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_here("export", "--store", ...)` runs a job that needs no Ray in this process."""

    def run(job: str, *flags: str) -> subprocess.CompletedProcess[str]:
        main = importlib.import_module(f"jobs.{job}".replace("/", ".")).main
        (arguments_type,) = (kind for name, kind in get_type_hints(main).items() if name != "return")
        command = [f"{job}.py", *flags]
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as caught:
            exit_after(arguments_type, main)
        said = capsys.readouterr()
        return subprocess.CompletedProcess(command, int(caught.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def labels_in() -> Callable[[Path], dict[str, bytes]]:
    """`labels_in(folder)` reads all files of a store except the records of runs, which hold times."""

    def read(folder: Path) -> dict[str, bytes]:
        paths = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "runs"]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    return read


@pytest.fixture
def image_folder(
    tmp_path: Path, photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]
) -> Callable[[int], Path]:
    """`image_folder(40)` makes a folder of 40 small images in two subfolders."""

    def make(count: int) -> Path:
        folder = tmp_path / "images"
        for seed in range(count):
            path = folder / f"{seed % 2}" / f"{seed:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_image(photograph(seed), "PNG"))
        return folder

    return make
