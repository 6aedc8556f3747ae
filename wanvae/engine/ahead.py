"""Work beside the program, in threads: computing the next items of an iteration while the program
uses the last ones, and finishing the last items while it computes the next ones."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
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
        wait_for(thread)


@contextmanager
def behind(work: Callable[[T], object], depth: int) -> Iterator[Callable[[T], None]]:
    """Gives a function that passes an item to ``work``, which a thread does, in order.

    At most ``depth`` items wait; then the function waits too. At the end of the block all work is
    done. After an exception in the block, the items that still wait are dropped. No work goes on
    after the block.

    An error of ``work`` is raised by the function, or at the end of the block; no work follows it.
    """
    queue: SimpleQueue[list[T]] = SimpleQueue()  # of lists of one item; an empty list is the end
    room, stopped = Semaphore(depth), Event()
    errors: list[BaseException] = []

    def work_off() -> None:
        while item := queue.get():
            room.release()
            if stopped.is_set():
                continue
            try:
                work(item[0])
            except BaseException as error:  # raised where the items come from
                errors.append(error)
                stopped.set()

    def put(item: T) -> None:
        room.acquire()
        if errors:
            raise errors[0]
        queue.put([item])

    thread = Thread(target=work_off, daemon=True)
    thread.start()
    try:
        yield put
        queue.put([])
        thread.join()
    except BaseException:
        stopped.set()
        queue.put([])
        wait_for(thread)
        raise
    if errors:
        raise errors[0]


def wait_for(thread: Thread) -> None:
    """Waits for the end of a thread, also if an interrupt comes meanwhile, which is raised then."""
    try:
        thread.join()
    except BaseException:
        thread.join()
        raise
