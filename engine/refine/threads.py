"""A team of Python threads for kernels that release the GIL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from types import TracebackType
from typing import Any

# Where a kernel's index range is cut: thread i works from bounds[i] to bounds[i + 1].
Bounds = Sequence[int]


class Team:
    """`size` threads, a context manager; with one there is no pool and all runs in the caller's thread.

    Python threads rather than a threading layer of numba's: several threads of one process may refine at
    the same time, and kernels need not be compiled a second time.
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

    def cut(self, length: int) -> Bounds:
        """Cut range(length) into one part for every thread, equal up to one.

        >>> with Team(2) as team:
        ...     team.cut(5)
        [0, 2, 5]
        """
        return [length * part // self.size for part in range(self.size + 1)]

    def run(self, kernel: Callable[..., object], bounds: Bounds, *args: Any) -> None:
        """Call kernel(*args, start, stop) for every part, at the same time; the parts must be independent."""
        self.run_all([partial(kernel, *args, start, stop) for start, stop in pairwise(bounds)])

    def run_all(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Results of the calls, in order; they run at the same time where there are threads for them.

        >>> with Team(2) as team:
        ...     team.run_all([lambda: 1, lambda: 2, lambda: 3])
        [1, 2, 3]
        """
        if self._pool is None:
            return [call() for call in calls]
        return [pending.result() for pending in [self._pool.submit(call) for call in calls]]
