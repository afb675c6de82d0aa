"""Settings of a run that do not change its result."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run does beside learning; none of it changes the result."""

    processes: int = 2
    """Processes beside each worker that read images and make samples; 0 leaves that to the worker."""
    log_every: int = 10
    """Steps between two lines of figures; the first step has one, too."""
    checkpoint_every: int = 500
    """Steps between two checkpoints, and two evaluations where there is something to evaluate on."""

    def __post_init__(self) -> None:
        if self.processes < 0:
            raise ConfigurationError(f"processes must not be negative, got {self.processes}")
        for name in ("log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is at least 1 step, got {getattr(self, name)}")
