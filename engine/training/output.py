"""Whose training an output holds: refuse another's, resume an unfinished one, leave a finished one alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import ConfigurationError, ObjectMissing
from engine.objects.object_store import ObjectStore
from engine.training.checkpoints import CHECKPOINT_KEY

DESCRIPTION_KEY = "training.json"


@dataclass(frozen=True, kw_only=True)
class TrainingDescription:
    """Everything that decides a training's result: the configuration, and the data by name.

    `result_key` is the object that is written last, when the training is finished.
    """

    config: Mapping[str, Any]
    data: Mapping[str, Any]
    result_key: str

    def to_json(self) -> str:
        """The content of `DESCRIPTION_KEY`."""
        return json.dumps({"config": self.config, **self.data}, indent=1, sort_keys=True) + "\n"

    def differences(self, stored: str) -> list[str]:
        """Names of the settings and data in which a stored description differs.

        >>> ours = TrainingDescription(config={"steps": 2}, data={"images": "a"}, result_key="network")
        >>> ours.differences('{"config": {"steps": 3}, "images": "a"}')
        ['steps']
        """
        # Ours through JSON as well, so that tuples compare equal to lists.
        ours, theirs = json.loads(self.to_json()), json.loads(stored)
        data = [name for name in self.data if ours[name] != theirs[name]]
        return data + [name for name in self.config if ours["config"][name] != theirs["config"].get(name)]


def create_output(output: ObjectStore, description: TrainingDescription, resume: bool) -> bool:
    """Check an output and claim it for a training; True if it is finished. Raises as `check_output`."""
    is_finished = check_output(output, description, resume)
    # If the description exists, it is equal to this one.
    output.create(DESCRIPTION_KEY, description.to_json().encode())
    return is_finished


def check_output(output: ObjectStore, description: TrainingDescription, resume: bool) -> bool:
    """Whether `output` holds the finished training already.

    Raises ConfigurationError if it holds another training, or this one and `resume` is false.
    """
    try:
        stored = output.read(DESCRIPTION_KEY).decode()
    except ObjectMissing:
        _check_is_empty(output)
        return False
    try:
        different = description.differences(stored)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{output.uri}/{DESCRIPTION_KEY} is damaged: restore it, or give another --output"
        ) from error
    if different:
        raise ConfigurationError(
            f"{output.uri} holds another training (it differs in {', '.join(different)}): give the same "
            "flags, or another --output"
        )
    if not resume:
        raise ConfigurationError(
            f"{output.uri} holds this training already: --resume goes on with it, or give another --output"
        )
    return _exists(output, description.result_key)


def _check_is_empty(output: ObjectStore) -> None:
    """Raise ConfigurationError for a checkpoint that no description belongs to."""
    if _exists(output, CHECKPOINT_KEY):
        raise ConfigurationError(
            f"{output.uri} holds a checkpoint without {DESCRIPTION_KEY}, as earlier versions wrote for "
            "encoders: give another --output"
        )


def _exists(output: ObjectStore, key: str) -> bool:
    return key in output.keys(key)
