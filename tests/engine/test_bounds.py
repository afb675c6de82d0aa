import pickle
from dataclasses import dataclass

import pytest

from engine.bounds import Bounded, Cosine, Count, CountOrZero, NotNegative, Positive, Share
from engine.errors import OutOfBoundsError


@dataclass(frozen=True, kw_only=True)
class _Settings(Bounded):
    share: Share = 0.5
    cosine: Cosine = 0.0
    rate: Positive = 1.0
    decay: NotNegative = 0.0
    steps: Count | None = None
    processes: CountOrZero = 0
    ranges: tuple[tuple[Positive, Positive], ...] = ((1.0, 2.0),)


def test_both_ends_of_an_interval_are_allowed() -> None:
    assert _Settings(share=1, cosine=-1, decay=0.0, steps=1).cosine == -1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("share", 1.5, "share is a share, 0 to 1, got 1.5"),
        ("share", float("nan"), "share is a share, 0 to 1, got nan"),
        ("cosine", -2, "cosine is a cosine, -1 to 1, got -2"),
        ("rate", 0.0, "rate is a number > 0, got 0.0"),
        ("rate", float("inf"), "rate is a number > 0, got inf"),
        ("decay", -1.0, "decay is a number >= 0, got -1.0"),
        ("steps", 0, "steps is a whole number >= 1, got 0"),
        ("processes", -1, "processes is a whole number >= 0, got -1"),
        ("ranges", ((1.0, 0.0),), "ranges is a number > 0, got ((1.0, 0.0),)"),
    ],
)
def test_a_number_outside_its_bounds_is_told_with_its_field(field: str, value: object, message: str) -> None:
    with pytest.raises(OutOfBoundsError) as raised:
        _Settings(**{field: value})
    assert str(raised.value) == message
    assert (raised.value.owner, raised.value.field) == ("_Settings", field)


def test_the_error_survives_a_process_border() -> None:
    with pytest.raises(OutOfBoundsError) as raised:
        _Settings(share=2)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
