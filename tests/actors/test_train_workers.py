"""Sizing of training workers, and what the driver hears of them, without Ray."""

import pytest

from actors.monitor import RunMonitor
from actors.train_workers import WorkerSizes, first_cause, size_workers
from engine.errors import ConfigurationError, OutOfBoundsError


def sizes_of(*cluster):
    sizes = size_workers(*cluster)
    return sizes.workers, sizes.cpus_each, sizes.use_gpu


def test_a_worker_per_gpu_shares_the_cpus():
    assert sizes_of(32, 4, 16, None) == (4, 8, True)
    assert sizes_of(32, 4, 16, 2) == (2, 16, True)
    assert sizes_of(3, 0, 3, None) == (1, 3, False)
    # No worker gets more CPUs than the largest node has.
    assert sizes_of(64, 0, 16, 2) == (2, 16, False)


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ((2, 0, 2, 3), "3 workers need a CPU each, and 2 CPUs and 0 GPUs are free: set workers to 2"),
        ((8, 2, 8, 4), "4 workers need a CPU and a GPU each, .* set workers to 2"),
        ((0.5, 0, 1, None), "1 workers need a CPU each, and 0.5 CPUs"),
    ],
)
def test_more_workers_than_the_cluster_holds_are_refused(cluster, message):
    with pytest.raises(ConfigurationError, match=message):
        size_workers(*cluster)


def test_zero_workers_are_out_of_bounds():
    with pytest.raises(OutOfBoundsError, match="workers is a whole number >= 1, got 0"):
        WorkerSizes(workers=0, cpus_each=1, use_gpu=False)


def test_the_first_cause_is_the_first_workers_last_line():
    error = RuntimeError("Ray's summary")
    assert first_cause(error) == "Ray's summary"
    error.worker_failures = {0: ValueError("Traceback\nStoreError: gone\n"), 1: ValueError("other")}
    assert first_cause(error) == "StoreError: gone"
    assert first_cause(ValueError()) == "ValueError"


def test_the_monitor_hands_metrics_over_once_and_keeps_the_first_error():
    monitor = RunMonitor()
    assert (monitor.drain_metrics(), monitor.error()) == ([], None)
    monitor.report_metrics(1, {"loss": 2.0})
    monitor.report_metrics(2, {"loss": 1.0})
    assert monitor.drain_metrics() == [(1, {"loss": 2.0}), (2, {"loss": 1.0})]
    assert monitor.drain_metrics() == []
    for message in ("the loss is nan", "the loss is nan on another worker"):
        monitor.report_error(message)
    assert monitor.error() == "the loss is nan"
