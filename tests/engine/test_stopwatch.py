import pytest
import torch

from engine.stopwatch import stage, timed_stages


def test_a_timed_stage_waits_for_what_it_queued_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("wait"))
    with stage("nobody asks"):
        events.append("work")
    assert events == ["work"]
    with timed_stages() as seconds, stage("encode"):
        events.append("work")
    assert events == ["work", "wait", "work", "wait"]
    assert set(seconds) == {"encode"}


def test_stages_add_up_in_the_order_in_which_they_first_end() -> None:
    with timed_stages() as seconds:
        for name in ("read", "encode", "read"):
            with stage(name):
                pass
    with stage("afterwards"):
        pass
    assert list(seconds) == ["read", "encode"]
    assert min(seconds.values()) > 0
