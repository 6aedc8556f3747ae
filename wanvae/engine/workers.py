"""A function in several threads or processes of this machine, with the results in order."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import TypeVar

from wanvae.errors import UserError

X = TypeVar("X")
Y = TypeVar("Y")

# Items that wait for each thread or process.
AHEAD = 4


def map_in_threads(function: Callable[[X], Y], items: Iterable[X], workers: int) -> Iterator[Y]:
    """Yields ``function(item)`` for each item, in order, for work that leaves Python's lock alone.

    Args:
        workers: number of threads.
    """
    yield from map_in_pool(ThreadPoolExecutor(workers), function, items, AHEAD * workers)


def map_in_processes(function: Callable[[X], Y], items: Iterable[X], workers: int) -> Iterator[Y]:
    """Yields ``function(item)`` for each item, in order, for work that holds Python's lock.

    Args:
        function: can be pickled, and so can the items and the results.
        workers: number of processes; 1 is this process itself.

    Raises:
        UserError: a process was killed.
    """
    if workers == 1:
        yield from map(function, items)
        return
    # Processes that are forked would take threads of FFmpeg and PyTorch with them, half alive.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), prepare)
    try:
        yield from map_in_pool(pool, function, items, AHEAD * workers)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, as the system does when memory is full; run it again "
            "with fewer --workers"
        ) from error


def map_in_pool(
    pool: Executor, function: Callable[[X], Y], items: Iterable[X], most: int
) -> Iterator[Y]:
    """Yields ``function(item)`` for each item, in order, and shuts the pool down at the end.

    Args:
        most: items that wait at once, so that the memory does not grow with their number.
    """
    items = iter(items)
    waiting: deque[Future[Y]] = deque()
    try:
        waiting.extend(pool.submit(function, item) for item in islice(items, most))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(items, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def prepare() -> None:
    """Prepares a process, which ends when this one is told to, or has died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=follow_parent, daemon=True).start()


def follow_parent() -> None:
    """Ends this process when its parent has died."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
