"""Computing the next items of an iteration while the program uses the last ones."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """The ``items``, which a thread computes, at most ``depth`` of them in advance.

    An error of ``items`` is raised here. Close the generator to end the thread early.
    """
    # Pairs of an item and an error; a pair without either is the end.
    queue: SimpleQueue[tuple[list[T], BaseException | None]] = SimpleQueue()
    room, stopped = Semaphore(depth - 1), Event()

    def compute() -> None:
        try:
            with closing(items):
                for item in items:
                    queue.put(([item], None))
                    room.acquire()
                    if stopped.is_set():
                        return
        except BaseException as error:  # raised where the items are used
            queue.put(([], error))
        else:
            queue.put(([], None))

    thread = Thread(target=compute, daemon=True)
    thread.start()
    try:
        while True:
            item, error = queue.get()
            if error is not None:
                raise error
            if not item:
                return
            room.release()
            yield item[0]
    finally:
        stopped.set()
        room.release()
        thread.join()
