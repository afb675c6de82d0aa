"""What is logged when, and what a resumed run makes of the log."""

from dataclasses import replace

from engine.objects.memory import MemoryObjects
from engine.training.metrics import MetricsConfig, TrainingMetrics, read_metrics, read_unread
from engine.training.settings import RunSettings

CONFIG = MetricsConfig(settings=RunSettings(log_every=3), batch_size=4)


def test_the_first_every_third_and_the_last_step_are_logged_and_reported():
    output, reports = MemoryObjects(), []
    config = replace(CONFIG, report=lambda step, metrics: reports.append((step, metrics)))
    metrics = TrainingMetrics(output, 0, config)
    for step in range(1, 6):
        metrics.add_step(step, {"loss": 1 / step}, is_last=step == 5)
    metrics.log(5, {"mask_AP": 0.1234567})
    assert read_metrics(output) == []
    metrics.write(next_step=5)
    lines = read_metrics(output)
    assert [line["step"] for line in lines] == [1, 3, 5, 5]
    assert [line["loss"] for line in lines[:3]] == [1.0, 0.333333, 0.2]
    assert lines[3] == {"step": 5, "mask_AP": 0.123457}
    assert all(line["images_per_s"] > 0 for line in lines[:3])
    assert [{"step": step, **reported} for step, reported in reports] == lines


def test_a_repeated_stretch_replaces_the_earlier_one():
    output = MemoryObjects()
    first = TrainingMetrics(output, 0, CONFIG)
    first.add_step(3, {"loss": 3.0}, is_last=False)
    first.write(next_step=3)
    for loss in (6.0, 7.0):
        # Both runs begin at the checkpoint of step 3; the first one crashed after it wrote the log.
        resumed = TrainingMetrics(output, 3, CONFIG)
        resumed.add_step(6, {"loss": loss}, is_last=False)
        resumed.add_unread(6, "a.png", f"damaged in the run with loss {loss:g}")
        resumed.write(next_step=6)
    assert [(line["step"], line["loss"]) for line in read_metrics(output)] == [(3, 3.0), (6, 7.0)]
    assert read_unread(output) == {"a.png": "damaged in the run with loss 7"}


def test_other_workers_log_only_what_they_could_not_read():
    output = MemoryObjects()
    for rank in (0, 1):
        metrics = TrainingMetrics(output, 0, replace(CONFIG, rank=rank))
        metrics.add_step(3, {"loss": 1.0}, is_last=False)
        metrics.add_unread(3, f"{rank}.png", "missing")
        metrics.write(next_step=3)
    assert len(read_metrics(output)) == 1
    assert read_unread(output) == {"0.png": "missing", "1.png": "missing"}


def test_nothing_measured_writes_nothing():
    output = MemoryObjects()
    TrainingMetrics(output, 0, CONFIG).write(next_step=0)
    assert list(output.keys()) == []
