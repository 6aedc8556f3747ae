"""Making the next items of an iteration while the last ones are in use."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """``items``, made in a thread of their own, up to ``depth`` before they are asked for.

    What they raise is raised here in their place. Close the generator to end the thread early.
    """
    # Pairs of an item and an error; neither is the end.
    made: SimpleQueue[tuple[list[T], BaseException | None]] = SimpleQueue()
    room, stopped = Semaphore(depth - 1), Event()

    def make() -> None:
        try:
            with closing(items):
                for item in items:
                    made.put(([item], None))
                    room.acquire()
                    if stopped.is_set():
                        return
        except BaseException as error:  # raised where the items are used
            made.put(([], error))
        else:
            made.put(([], None))

    thread = Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
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
