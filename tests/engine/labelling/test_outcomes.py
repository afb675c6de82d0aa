import pytest

from engine.labelling.outcomes import Labels, attempt, make_outcome
from engine.masks.instances import Instances
from engine.types import ImageRecord, Optimality, Reason, Status

RECORD = ImageRecord(image_id="a", path="a")


def test_labels_become_a_row() -> None:
    optimality = Optimality(objective=-2.5, gap=0.1)
    empty, broken = (
        make_outcome(RECORD, (96, 128), "digest", Labels(reason=reason, optimality=optimality))
        for reason in (Reason.NO_BACKGROUND, Reason.NON_FINITE)
    )
    assert (empty.status, empty.reason) == (Status.NO_OBJECT, Reason.NO_BACKGROUND)
    assert (broken.status, broken.reason) == (Status.REJECTED, Reason.NON_FINITE)
    assert (empty.height, empty.width, empty.sha256) == (96, 128, "digest")
    assert empty.optimality == optimality
    instances = Instances(size=(96, 128), method="promerge")
    row = make_outcome(RECORD, (96, 128), "digest", Labels(instances=instances))
    assert (row.status, row.reason, row.instances) == (Status.LABELLED, None, instances)


def test_an_error_becomes_the_row_of_a_rejected_image() -> None:
    error = attempt(int, "x")
    assert isinstance(error, ValueError)
    row = make_outcome(RECORD, (96, 128), "digest", error)
    assert (row.status, row.reason, row.height) == (Status.REJECTED, Reason.FAILED, None)
    assert row.detail.startswith("while labelling: ValueError: invalid literal")
    assert attempt(int, "7") == 7


def test_labels_are_instances_or_a_reason() -> None:
    with pytest.raises(ValueError, match="instances or a reason"):
        Labels()
    with pytest.raises(ValueError, match="instances or a reason"):
        Labels(instances=Instances(size=(1, 1), method="solo"), reason=Reason.NO_FOREGROUND)
