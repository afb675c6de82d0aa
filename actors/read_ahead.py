"""An iterator that runs ahead of its consumer, in a thread."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import TypeVar

Item = TypeVar("Item")


@contextmanager
def read_ahead(items: Generator[Item], depth: int) -> Iterator[Iterator[Item]]:
    """Run a generator in a thread of its own, up to `depth` items ahead of the consumer.

    An exception is raised in place of the next item. The generator is closed with the context, whether or not
    it is exhausted.

    >>> with read_ahead((n * n for n in range(4)), depth=2) as squares:
    ...     list(squares)
    [0, 1, 4, 9]
    """
    produced: SimpleQueue[tuple[Item] | BaseException | None] = SimpleQueue()
    free = Semaphore(depth)
    is_closed = False

    def produce() -> None:
        try:
            with closing(items):
                for item in items:
                    free.acquire()
                    if is_closed:
                        return
                    produced.put((item,))
        except BaseException as error:  # for the consumer to handle, whatever it is
            produced.put(error)
        else:
            produced.put(None)

    def consume() -> Iterator[Item]:
        while (item := produced.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            free.release()
            yield item[0]

    thread = Thread(target=produce, daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        is_closed = True
        free.release()
        thread.join()
