"""The exception tree of the project.

MaskmillError
├── UsageError              the request cannot be carried out; one line says what to do (exit code 2)
│   ├── ConfigurationError    a setting is out of range, or settings contradict each other
│   │   └── OutOfBoundsError    a number lies outside the bounds of its field
│   ├── CorpusError           the corpus is missing, empty or of another kind
│   ├── StoreError            the store cannot be read or written, or does not match the request
│   │   └── PlaceError            a bucket or folder is gone, silent or refuses access (also a CorpusError)
│   └── WeightsError          the weights are unknown, unreachable or do not fit the network
├── ImageError              an image failed; it becomes a row with a reason
├── ObjectMissing           no object has this key
├── TransientError          a retry may succeed: time-outs, throttling, an unreachable server
├── DeviceMemoryError       a GPU ran out of memory
└── RunError                a run ended before its output was complete (exit code 1)

Exceptions are pickled between processes, so each passes all its arguments to `super().__init__`.
"""

from __future__ import annotations

from engine.types import Reason


class MaskmillError(Exception):
    """Base of all exceptions that this project raises deliberately."""


class UsageError(MaskmillError):
    """The request cannot be carried out; the message is one line that says what to do."""


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
    """The corpus is missing, empty or of another kind."""


class StoreError(UsageError):
    """The store cannot be read or written, or does not match the request."""


class PlaceError(CorpusError, StoreError):
    """A bucket or folder as a whole is gone, refuses access or does not answer.

    No single image is the cause: a run stops with a RunError, and no row is made.
    """


class WeightsError(UsageError):
    """The weights are unknown, unreachable or do not fit the network."""


class ImageError(MaskmillError):
    """An image failed; `reason` and `detail` (an explanation in words) are stored in its row."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class ObjectMissing(MaskmillError):
    """No object has this key."""


class TransientError(MaskmillError):
    """A retry may succeed: a time-out, throttling, an unreachable server."""


class DeviceMemoryError(MaskmillError):
    """A GPU ran out of memory; no single image is the cause."""


class RunError(MaskmillError):
    """A run ended before its output was complete."""
