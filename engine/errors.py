"""The one exception tree.

MaskmillError
├── UsageError              what was asked for cannot be done; one line says what to do (exit code 2)
│   ├── ConfigurationError    a setting is out of range, or settings contradict each other
│   │   └── OutOfBoundsError    a number lies outside the bounds of its field
│   ├── CorpusError           the corpus is missing, empty or not of this kind
│   ├── StoreError            the store cannot be read or written, or holds something else
│   └── WeightsError          the encoder or its weights are unknown, unreachable or do not fit
├── ImageError              one image failed; it becomes a row with a reason
├── ObjectMissing           no object has this key
├── TransientError          worth another try: time-outs, throttling, a server that went away
├── DeviceMemoryError       a GPU has no room for what was to be computed
└── RunError                a run ended without the store that it promised (exit code 1)

Exceptions cross process borders, so every one hands its positional arguments to `super().__init__`.
"""

from __future__ import annotations

from engine.types import Reason


class MaskmillError(Exception):
    """Base of everything that this project raises on purpose."""


class UsageError(MaskmillError):
    """What was asked for cannot be done; the message is one line that says what to do."""


class ConfigurationError(UsageError):
    """A setting is out of range, or settings contradict each other."""


class OutOfBoundsError(ConfigurationError):
    """A number lies outside the bounds of its field: `field` of the dataclass named `owner`."""

    def __init__(self, message: str, owner: str, field: str) -> None:
        super().__init__(message, owner, field)
        self.owner = owner
        self.field = field

    def __str__(self) -> str:
        return str(self.args[0])


class CorpusError(UsageError):
    """The corpus is missing, empty or not of this kind."""


class StoreError(UsageError):
    """The store cannot be read or written, or holds something else."""


class WeightsError(UsageError):
    """The encoder or its weights are unknown, unreachable or do not fit."""


class ImageError(MaskmillError):
    """One image failed; `reason` is the code that its row will carry, `detail` a sentence for people."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class ObjectMissing(MaskmillError):
    """No object has this key."""


class TransientError(MaskmillError):
    """Worth another try: a time-out, throttling, a server that went away."""


class DeviceMemoryError(MaskmillError):
    """A GPU has no room for what was to be computed; no image is to blame for it."""


class RunError(MaskmillError):
    """A run ended without the store that it promised."""
