"""Labels of a crop or an image, and the store row made of an image's labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from engine.masks.instances import Instances
from engine.types import ImageRecord, Optimality, Outcome, Reason, Status

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """The instances found in a crop or an image, or the reason why there are none: exactly one of the two.

    `optimality` is the partition's, for methods that make one.
    """

    instances: Instances | None = None
    reason: Reason | None = None
    optimality: Optimality | None = None

    def __post_init__(self) -> None:
        if (self.instances is None) == (self.reason is None):
            raise ValueError(f"labels are instances or a reason, got {self.instances} and {self.reason}")


def attempt(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Exception:
    """The function's result, or the error it raised: an error in one image must not cost another its row."""
    try:
        return function(*args, **kwargs)
    except Exception as error:  # whatever it is, it is about this image
        return error


def make_outcome(
    record: ImageRecord, size: tuple[int, int], sha256: str, labels: Labels | Exception
) -> Outcome:
    """The row of an image of `size` = (height, width) that was decoded; `sha256` is its file's digest.

    An error instead of labels makes the row of a rejected image.
    """
    if isinstance(labels, Exception):
        detail = f"while labelling: {type(labels).__name__}: {labels}"
        return rejected_outcome(record, Reason.FAILED, detail)
    empty = Status.REJECTED if labels.reason is Reason.NON_FINITE else Status.NO_OBJECT
    return Outcome(
        record=record,
        status=Status.LABELLED if labels.instances is not None else empty,
        height=size[0],
        width=size[1],
        sha256=sha256,
        reason=labels.reason,
        instances=labels.instances,
        optimality=labels.optimality,
    )


def rejected_outcome(record: ImageRecord, reason: Reason, detail: str) -> Outcome:
    """The row of an image that could not be read or labelled."""
    return Outcome(record=record, status=Status.REJECTED, reason=reason, detail=detail)
