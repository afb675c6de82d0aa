"""Layout of a SOLO training's output, and the description by which it is recognised.

training.json                  the configuration, and the fingerprint of the labels
checkpoint.pt                  the state at the last checkpoint, where a run resumes
network-000009000.safetensors  networks along the run
network.safetensors            the result
log/                           metrics as JSON lines and for TensorBoard, and images that could not be read:
                               one file per stretch between checkpoints
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from engine.solo.training_config import TrainingConfig
from engine.store.pseudo_labels import Version
from engine.training.output import TrainingDescription

RESULT_KEY = "network.safetensors"


def snapshot_key(step: int) -> str:
    """The key of the network after `step` steps."""
    return f"network-{step:09d}.safetensors"


def labels_fingerprint(version: Version) -> dict[str, str]:
    """Name and content digest of a version of labels."""
    return {"version": version.name, "content": version.content_digest()}


def describe_training(config: TrainingConfig, labels: Mapping[str, str]) -> TrainingDescription:
    """The description of a training on labels with this fingerprint."""
    return TrainingDescription(config=asdict(config), data={"labels": dict(labels)}, result_key=RESULT_KEY)
