"""What a training is, and what its output holds. This module does without the network's libraries.

training.json                  the configuration, and which labels of which images
checkpoint.pt                  the state after the last whole stretch; a run goes on from here
network-000009000.safetensors  networks along the run
network.safetensors            the result
log/                           figures as JSON lines and for TensorBoard, and what could not be read: a
                               file each for every stretch between checkpoints
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from engine.errors import ConfigurationError, ObjectMissing
from engine.objects.object_store import ObjectStore
from engine.solo.config import SoloConfig
from engine.solo.objective import ObjectiveConfig
from engine.solo.samples import SampleConfig, SampleTask
from engine.store.pseudo_labels import Version
from engine.store.selection import SelectionConfig
from engine.training.schedule import OptimiserConfig

DESCRIPTION_KEY = "training.json"
RESULT_KEY = "network.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that decides what a training gives."""

    steps: int = 90_000
    """Steps to train for."""
    batch_size: int = 16
    """Images in one step, over all workers together."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the network's passes; weights, losses and optimiser stay in float32."""
    deterministic: bool = False
    """Use only operations that give the same bits every time; costs speed on GPUs."""
    keep_empty: bool = False
    """Also learn from images without instances that nothing is there."""
    held_out: float = 0.0
    """Share of the images that is not learned from, to measure on, see --ground-truth."""
    snapshots: int = 4
    """Networks that are kept along the run, at equal distances, the last one being the result."""
    seed: int = 0
    """Of order and augmentation."""
    solo: SoloConfig = field(default_factory=SoloConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    ignore_above_score: float | None = None
    """Instances that `selection` leaves out are neither learned nor background where they have this score at
    least; without it, all that is not taken is background."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "snapshots"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is at least 1, got {getattr(self, name)}")
        if not 0 <= self.held_out < 1:
            raise ConfigurationError(f"held_out is a share below 1, got {self.held_out}")
        if self.snapshots > self.steps:
            raise ConfigurationError(f"snapshots are at most as many as steps, got {self.snapshots}")
        if not 0 <= self.seed < 2**63:
            raise ConfigurationError(f"seed must be in [0, 2^63), got {self.seed}")

    @property
    def sample_task(self) -> SampleTask:
        """What samples are made for."""
        return SampleTask(
            config=self.samples,
            side=self.solo.image_size,
            grid=self.solo.grid,
            superpixel_loss=self.objective.superpixel_loss if self.objective.needs_superpixels else None,
            adaptive_loss=self.objective.adaptive_loss if self.objective.needs_stability else None,
            seed=self.seed,
        )

    @property
    def snapshot_steps(self) -> tuple[int, ...]:
        """After which steps a network is kept, rising, the last being the end.

        >>> TrainingConfig(steps=10, snapshots=4).snapshot_steps
        (3, 5, 8, 10)
        """
        return tuple(-(-number * self.steps // self.snapshots) for number in range(1, self.snapshots + 1))


def snapshot_key(step: int) -> str:
    """Where the network after so many steps is kept."""
    return f"network-{step:09d}.safetensors"


def labels_fingerprint(version: Version) -> dict[str, str]:
    """Which labels of which images a version holds, for `create_output`."""
    return {"version": version.name, "content": version.content_digest()}


def create_output(
    output: ObjectStore, config: TrainingConfig, labels: Mapping[str, str], resume: bool
) -> bool:
    """Note in `output` what is trained; whether it holds the result already. Raises like `check_output`."""
    is_trained = check_output(output, config, labels, resume)
    description = {"config": asdict(config), "labels": dict(labels)}
    # What is there says the same.
    output.create(DESCRIPTION_KEY, (json.dumps(description, indent=1, sort_keys=True) + "\n").encode())
    return is_trained


def check_output(
    output: ObjectStore, config: TrainingConfig, labels: Mapping[str, str], resume: bool
) -> bool:
    """Whether `output` holds the result already.

    `labels` says which labels of which images. Raises ConfigurationError where another run is there, or one
    that `resume` does not ask to go on with.
    """
    # Through JSON, so that what is compared is what would be read back.
    ours = json.loads(json.dumps({"config": asdict(config), "labels": dict(labels)}))
    try:
        theirs = json.loads(output.read(DESCRIPTION_KEY))
        different = [
            name for name in ("labels", *ours["config"]) if _setting(ours, name) != _setting(theirs, name)
        ]
    except ObjectMissing:
        return False
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{output.uri}/{DESCRIPTION_KEY} is damaged: restore it, or give another --output"
        ) from error
    if different:
        raise ConfigurationError(
            f"{output.uri} holds a training of another kind (it differs in {', '.join(different)}): give the "
            "same flags, or another --output"
        )
    if not resume:
        raise ConfigurationError(
            f"{output.uri} holds this training already: --resume goes on with it, or give another --output"
        )
    return next(output.keys(RESULT_KEY), None) is not None


def _setting(description: Mapping[str, Any], name: str) -> Any:
    return description["labels"] if name == "labels" else description["config"].get(name)
