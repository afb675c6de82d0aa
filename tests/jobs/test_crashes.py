"""Whichever process is killed, and when: the same command completes the same store, on any Ray."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

_JOB = Path(__file__).parents[2] / "jobs/label_folder.py"
_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
LabelsIn = Callable[[Path], dict[str, bytes]]
KillDriver = Callable[[subprocess.Popen[bytes]], None]


@dataclass
class Run:
    """A label job over small images in a process of its own, on a local Ray."""

    store: Path
    log: Path
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, corpus: Path, store: Path, *more: str, **environment: str) -> "Run":
        command = [
            sys.executable, str(_JOB), "--corpus", str(corpus), "--store", str(store), "--refine", "none",
            "--encoder", "descriptor", "--encoder.image-size", "96",
            "--shard-size", "4", "--chunk-size", "2", *more,
        ]  # fmt: skip
        log = store.with_suffix(".log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT
            )
        return cls(store, log, process)

    def num_shards(self) -> int:
        return len(list(self.store.glob("round-*/shard-*")))

    def wait_for_shards(self, count: int) -> None:
        while self.num_shards() < count and self.process.poll() is None:
            time.sleep(0.02)

    def workers(self) -> list[psutil.Process]:
        """Processes of Ray for actors and tasks, idle ones included."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                name = child.cmdline()[0]
            except (psutil.Error, IndexError):
                continue
            if name.startswith("ray::") and not name.startswith(_AGENTS):
                found.append(child)
        return found

    def kill_a_worker(self, rng: random.Random) -> None:
        workers = self.workers()
        if workers and self.process.poll() is None:
            try:
                os.kill(rng.choice(workers).pid, signal.SIGKILL)
            except ProcessLookupError:
                return

    def finish(self) -> None:
        assert self.process.wait() == 0, self.log.read_text()


@pytest.fixture
def undisturbed(
    labels_in: LabelsIn, cluster: Any, image_folder: Callable[[int], Path], tmp_path: Path
) -> Callable[[int], tuple[Path, dict[str, bytes]]]:
    """`undisturbed(40)` labels 40 images without a crash, on a cluster joined by its address, and returns the
    corpus and the files of the store."""

    def label(count: int) -> tuple[Path, dict[str, bytes]]:
        corpus = image_folder(count)
        to_cluster = ("--address", cluster.address)
        run = Run.start(corpus, tmp_path / "undisturbed", *to_cluster, **cluster.environment)
        run.finish()
        port = cluster.address.split(":")[1]
        assert re.search(rf"joined Ray at \S+:{port}: 1 node", run.log.read_text())
        return corpus, labels_in(tmp_path / "undisturbed")

    return label


def test_driver_and_worker_are_killed_once(
    labels_in: LabelsIn,
    undisturbed: Callable[[int], tuple[Path, dict[str, bytes]]],
    kill_driver: KillDriver,
    tmp_path: Path,
) -> None:
    corpus, expected = undisturbed(48)
    store = tmp_path / "store"
    run = Run.start(corpus, store)
    run.wait_for_shards(2)
    kill_driver(run.process)
    done = run.num_shards()
    assert 2 <= done < 12
    run = Run.start(corpus, store)
    run.wait_for_shards(done + 2)
    run.kill_a_worker(random.Random(0))
    run.finish()
    assert labels_in(store) == expected


@pytest.mark.slow
def test_a_terminated_job_says_how_to_resume(image_folder: Callable[[int], Path], tmp_path: Path) -> None:
    run = Run.start(image_folder(200), tmp_path / "store")
    run.wait_for_shards(2)
    run.process.terminate()
    assert run.process.wait() == 143
    assert run.log.read_text().endswith("interrupted; the same command goes on (trainings: with --resume)\n")


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_ten_kills_at_random_moments(
    labels_in: LabelsIn,
    undisturbed: Callable[[int], tuple[Path, dict[str, bytes]]],
    kill_driver: KillDriver,
    tmp_path: Path,
    victim: str,
) -> None:
    corpus, expected = undisturbed(400)
    rng = random.Random(victim)
    store = tmp_path / "store"
    kills = 0
    run = Run.start(corpus, store)
    while kills < 10:
        # Any moment from the start of Ray to the last shard.
        time.sleep(rng.uniform(0.5, 25) if victim == "driver" else rng.uniform(0.5, 3))
        if run.process.poll() is not None:
            run.finish()
            assert labels_in(store) == expected
            shutil.rmtree(store)
            run = Run.start(corpus, store)
        elif victim == "driver":
            kill_driver(run.process)
            kills += 1
            run = Run.start(corpus, store)
        elif run.num_shards() > 0:
            run.kill_a_worker(rng)
            kills += 1
    run.finish()
    assert labels_in(store) == expected
