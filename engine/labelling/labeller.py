"""The interface of labellers, and errors kept to the image that raised them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ParamSpec, Protocol, TypeVar

from engine.images.crops import Crop
from engine.labelling.outcomes import Labels

P = ParamSpec("P")


T = TypeVar("T")


class Labeller(Protocol):
    """What finds the instances of a chunk's crops."""

    def label(self, crops: Sequence[Crop]) -> list[Labels | Exception]:
        """Labels of each crop of a batch, or why there are none of it."""


def attempt(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Exception:
    """What the function returns, or the error that it raises: one image's must not cost another its row."""
    try:
        return function(*args, **kwargs)
    except Exception as error:  # as in Reader
        return error
