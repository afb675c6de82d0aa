"""An iterator that works ahead of whoever consumes it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import TypeVar

Item = TypeVar("Item")


@contextmanager
def read_ahead(items: Generator[Item], depth: int) -> Iterator[Iterator[Item]]:
    """Items of a generator that runs in a thread of its own, up to `depth` of them before they are asked for.

    What it raises is raised where its next item would have been. It is closed with the context, whether or
    not it has ended.

    >>> with read_ahead((n * n for n in range(4)), depth=2) as squares:
    ...     list(squares)
    [0, 1, 4, 9]
    """
    made: SimpleQueue[tuple[Item] | BaseException | None] = SimpleQueue()
    room = Semaphore(depth)
    is_left = False

    def make() -> None:
        try:
            with closing(items):
                for item in items:
                    room.acquire()
                    if is_left:
                        return
                    made.put((item,))
        except BaseException as error:  # the consumer's to handle, whatever it is
            made.put(error)
        else:
            made.put(None)

    def take() -> Iterator[Item]:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            room.release()
            yield item[0]

    thread = Thread(target=make, daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        is_left = True
        room.release()
        thread.join()
