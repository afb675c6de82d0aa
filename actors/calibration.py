"""Calibration as a Ray task, on a machine that has the device."""

from __future__ import annotations

import ray
import torch

from actors.outages import outages_as_run_errors
from engine.corpora import Corpus
from engine.labelling.calibration import Calibration, calibrate
from engine.labelling.config import LabellingConfig

# With more threads the sums, and so the choices, could differ between machines.
_NUM_THREADS = 2


def run_calibration(
    corpus: Corpus, config: LabellingConfig, device: str, cpus: float, gpus: float
) -> Calibration:
    """Calibrate on the cluster, with at most 2 of its free CPUs and one of its GPUs.

    Raises as `engine.labelling.calibration.calibrate` does, and RunError if the corpus is out of reach.
    """
    task = ray.remote(_calibrate).options(
        num_cpus=max(min(cpus, _NUM_THREADS), 0), num_gpus=1 if gpus >= 1 else 0
    )
    with outages_as_run_errors():
        calibration: Calibration = ray.get(task.remote(corpus, config, device))
    return calibration


def _calibrate(corpus: Corpus, config: LabellingConfig, device: str) -> Calibration:
    torch.set_num_threads(_NUM_THREADS)
    return calibrate(corpus, config, device)
