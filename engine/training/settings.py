"""Settings of a run that do not change its result."""

from __future__ import annotations

from dataclasses import dataclass

from engine.bounds import Bounded, Count, CountOrZero


@dataclass(frozen=True, kw_only=True)
class RunSettings(Bounded):
    """Processes, log and checkpoints of a training; none of them changes its result."""

    processes: CountOrZero | None = None
    """Processes per worker that read images and make samples; 0 does this in the worker itself. Default: one
    for each CPU of the worker but one."""
    log_every: Count = 10
    """Steps between two logged steps; the first and the last step are always logged."""
    checkpoint_every: Count = 500
    """Steps between two checkpoints, and between two evaluations if there is a ground truth."""

    def num_processes(self, num_cpus: int) -> int:
        """Sample processes of a worker with `num_cpus`.

        >>> RunSettings().num_processes(4)
        3
        """
        return self.processes if self.processes is not None else num_cpus - 1
