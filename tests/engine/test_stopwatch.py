import pytest
import torch

from engine.stopwatch import stage, timed_stages


def test_a_timed_stage_waits_for_the_work_it_queued_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("wait"))
    with stage("not timed"):
        events.append("work")
    assert events == ["work"]
    with timed_stages() as seconds, stage("encode"):
        events.append("work")
    assert events == ["work", "wait", "work", "wait"]
    assert set(seconds) == {"encode"}


def test_seconds_of_a_stage_add_up() -> None:
    with timed_stages() as seconds:
        for name in ("read", "encode", "read"):
            with stage(name):
                pass
    with stage("afterwards"):
        pass
    assert list(seconds) == ["read", "encode"]
    assert min(seconds.values()) > 0
