import io

import pytest
from rich.console import Console

from actors.pipeline import Progress
from engine.types import Reason
from jobs.cli.progress import ProgressDisplay


@pytest.fixture
def log() -> Console:
    return Console(file=io.StringIO(), width=40)


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_labelling_shows_masks_and_rejects(terminal: Console) -> None:
    progress = Progress(images=40, instances=100)
    progress.reasons[Reason.TRUNCATED] = 2
    with ProgressDisplay(100, console=terminal) as display:
        display.show_labelling(progress)
    assert "40/100 images, 2.5 masks/image, truncated 2" in written(terminal)


@pytest.mark.parametrize(("empty", "is_warned"), [(25, True), (20, False)])
def test_a_run_that_finds_nothing_says_so_once(log: Console, empty: int, is_warned: bool) -> None:
    progress = Progress(images=32)
    progress.reasons[Reason.NO_FOREGROUND] = empty
    display = ProgressDisplay(100, console=log)
    for _ in range(2):
        display.show_labelling(progress)
    assert written(log).count(f"warning: no masks in {empty} of the first 32 images") == is_warned


def test_a_log_gets_the_first_and_the_last_step_and_every_ap(log: Console) -> None:
    with ProgressDisplay(8, "steps", console=log) as display:
        for step in (1, 2, 8):
            display.show_metrics(step, {"loss": 1.23456})
            if step == 2:
                display.show_metrics(step, {"mask_AP": 0.1})
    first, measured, last = written(log).splitlines()
    assert first == "1/8 steps, loss 1.235"
    assert measured.startswith("2/8 steps, mask_AP 0.1, ")
    assert last.startswith("8/8 steps, loss 1.235, ")
    assert last.endswith(" steps/s, 0:00:00 left")


def test_an_unknown_total_is_a_question_mark(log: Console) -> None:
    with ProgressDisplay(None, label="export", console=log) as display:
        display.show(0, keep=True)
    assert written(log) == "export: 0/? images\n"
