import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

_JOB = Path(__file__).parents[2] / "jobs/label_folder.py"


def _memory_bytes(processes: list[psutil.Process]) -> int:
    """Memory of process trees; shared memory is counted once (PSS)."""
    total = 0
    for process in processes:
        for member in [process, *process.children(recursive=True)]:
            try:
                total += member.memory_full_info().pss
            except psutil.Error:
                continue
    return total


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(
    roomy_cluster: Any, image_folder: Callable[[int], Path], tmp_path: Path
) -> None:
    corpus = image_folder(2000)
    peaks = {}
    for count in (500, 2000):
        store = tmp_path / f"store-{count}"
        command = [
            sys.executable, str(_JOB), "--corpus", str(corpus), "--store", str(store), "--limit", str(count),
            "--refine", "none", "--encoder", "descriptor",
            "--shard-size", "100", "--address", roomy_cluster.address,
        ]  # fmt: skip
        job = psutil.Popen(command, env=roomy_cluster.environment, stdout=subprocess.DEVNULL)
        peaks[count] = 0
        while job.poll() is None:
            peaks[count] = max(peaks[count], _memory_bytes([job, roomy_cluster.process]))
            time.sleep(1)
        assert job.returncode == 0
    logging.getLogger(__name__).info("peaks: %s", {n: f"{peak >> 20} MiB" for n, peak in peaks.items()})
    assert peaks[2000] <= 1.15 * peaks[500]
