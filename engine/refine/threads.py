"""A pool of Python threads for kernels that release the GIL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from types import TracebackType
from typing import Any

# Positions at which an index range is divided: thread i works from cuts[i] to cuts[i + 1].
Cuts = Sequence[int]


class Team:
    """A context manager that holds `size` threads; a team of one runs in the caller's thread.

    Python threads rather than a threading layer of numba: several threads of one process may refine at the
    same time, and kernels need not be compiled twice.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._pool = ThreadPoolExecutor(size) if size > 1 else None

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def cut(self, length: int) -> Cuts:
        """Divide range(length) into one part per thread, with sizes that differ by at most one.

        >>> with Team(2) as team:
        ...     team.cut(5)
        [0, 2, 5]
        """
        return [length * part // self.size for part in range(self.size + 1)]

    def run(self, kernel: Callable[..., object], cuts: Cuts, *args: Any) -> None:
        """Call kernel(*args, start, stop) concurrently for every part; parts must be independent."""
        self.run_all([partial(kernel, *args, start, stop) for start, stop in pairwise(cuts)])

    def run_all(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run the calls, concurrently if there are threads for them, and return their results in order.

        >>> with Team(2) as team:
        ...     team.run_all([lambda: 1, lambda: 2, lambda: 3])
        [1, 2, 3]
        """
        if self._pool is None:
            return [call() for call in calls]
        return [pending.result() for pending in [self._pool.submit(call) for call in calls]]
