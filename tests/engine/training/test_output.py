"""Whose training an output holds."""

import json
from dataclasses import replace

import pytest

from engine.errors import ConfigurationError
from engine.objects.memory import MemoryObjects
from engine.training.checkpoints import CHECKPOINT_KEY
from engine.training.output import DESCRIPTION_KEY, TrainingDescription, check_output, create_output

OURS = TrainingDescription(
    config={"steps": 6, "scales": (0.5, 1.0)}, data={"labels": {"version": "a"}}, result_key="network"
)


def test_an_output_is_claimed_resumed_and_finished():
    output = MemoryObjects()
    assert not check_output(output, OURS, resume=False)
    assert list(output.keys()) == []
    assert not create_output(output, OURS, resume=False)
    with pytest.raises(ConfigurationError, match="--resume goes on"):
        create_output(output, OURS, resume=False)
    assert not create_output(output, OURS, resume=True)
    # Not the result, although its key begins alike.
    output.write("network-000000003", b"")
    assert not create_output(output, OURS, resume=True)
    output.write("network", b"")
    assert create_output(output, OURS, resume=True)


def test_another_training_is_refused():
    output = MemoryObjects()
    create_output(output, OURS, resume=False)
    for other, different in (
        (replace(OURS, config={"steps": 7, "scales": (0.5, 2.0)}), "steps, scales"),
        (replace(OURS, data={"labels": {"version": "b"}}), "labels"),
        (replace(OURS, config={**OURS.config, "new": 1}), "new"),
    ):
        with pytest.raises(ConfigurationError, match=rf"differs in {different}\)"):
            create_output(output, other, resume=True)
    # Also if the output has no data of this kind.
    output.write(DESCRIPTION_KEY, json.dumps({"config": {}}).encode())
    with pytest.raises(ConfigurationError, match=r"training\.json is damaged"):
        create_output(output, OURS, resume=True)


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"3"])
def test_a_damaged_description_is_refused(content):
    output = MemoryObjects()
    output.write(DESCRIPTION_KEY, content)
    with pytest.raises(ConfigurationError, match=r"training\.json is damaged"):
        check_output(output, OURS, resume=True)


def test_a_checkpoint_of_an_earlier_version_is_refused():
    output = MemoryObjects()
    output.write(CHECKPOINT_KEY, b"")
    with pytest.raises(ConfigurationError, match=r"a checkpoint without training\.json"):
        check_output(output, OURS, resume=True)
