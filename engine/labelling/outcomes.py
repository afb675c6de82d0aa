"""Labels of one crop, and the store row made of an image's labels."""

from __future__ import annotations

from dataclasses import dataclass

from engine.masks.instances import Instances
from engine.types import ImageRecord, Optimality, Outcome, Reason, Status


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """What became of an image's features: instances, or the reason why there are none."""

    found: Instances | Reason
    optimality: Optimality | None = None


def make_outcome(record: ImageRecord, size: tuple[int, int], sha256: str, labels: Labels) -> Outcome:
    """The row of an image of `size` = (height, width) that was looked at; `sha256` is its file's."""
    instances = labels.found if isinstance(labels.found, Instances) else None
    reason = labels.found if isinstance(labels.found, Reason) else None
    empty = Status.REJECTED if reason is Reason.NON_FINITE else Status.NO_OBJECT
    return Outcome(
        record=record,
        status=Status.LABELLED if instances is not None else empty,
        height=size[0],
        width=size[1],
        sha256=sha256,
        reason=reason,
        instances=instances,
        optimality=labels.optimality,
    )
