"""Memory for intermediate results.

Blocks of several MB come and go with every layer. The C library returns large blocks to the system
each time, and the next block costs a page fault for each 4 KB: a third of the time of a decoder on
some machines. The C library keeps smaller blocks, with holes between them that grow during a
stream. So on CPUs, large blocks come from a pool, in pages of 2 MB where the system has such pages.
"""

from __future__ import annotations

import math
import mmap
import sys
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock

import torch
from torch import Tensor

# Bytes; smaller blocks come from the C library.
SMALLEST_BLOCK = 2**20
# A free block is lent for a smaller size if at most this fraction is wasted.
WASTE = 1 / 8
# Bytes that wait to be used again: without a memory limit, and within a memory limit.
KEPT = 2**30
KEPT_WITHIN_LIMITS = 2**26


class Pool:
    """A pool of memory blocks that are lent, come back when nobody uses them, and are lent again.

    Free and lent memory together never exceed the most memory that was lent at once. So the pool
    takes no more memory than its users would take without it.

    Attributes:
        most_free: the most free bytes that are kept without a memory limit.
    """

    def __init__(self) -> None:
        self.most_free = KEPT
        self._limits = 0  # number of runs within a memory limit
        self._free: list[mmap.mmap] = []  # the block that waits longest is first
        self._lent = 0
        self._most_lent = 0
        # Blocks come back at any time, even while this thread holds the lock.
        self._returned: deque[mmap.mmap] = deque()
        self._lock = Lock()

    @property
    def free(self) -> int:
        """Bytes that wait to be lent."""
        with self._lock:
            self._collect()
            return sum(map(len, self._free))

    def lend(self, size: int) -> memoryview:
        """Returns uninitialized memory of ``size`` bytes or a little more.

        The memory comes back to the pool when nobody uses it.

        Raises:
            MemoryError: the system does not have that much memory.
        """
        size = math.ceil(size / mmap.PAGESIZE) * mmap.PAGESIZE
        with self._lock:
            self._collect()
            block = self._take(size) or self._make(size)
            self._lent += len(block)
        view = memoryview(block)
        weakref.finalize(view, self._take_back, block)
        return view

    @contextmanager
    def within_limits(self) -> Iterator[None]:
        """Keeps little free memory inside ``with``, until the last thread leaves it."""
        with self._lock:
            self._limits += 1
        try:
            yield
        finally:
            with self._lock:
                self._limits -= 1
            self.clear()

    def clear(self) -> None:
        """Returns all free memory to the system."""
        with self._lock:
            self._collect()
            self._limit(0)
            self._most_lent = self._lent

    def _take_back(self, block: mmap.mmap) -> None:
        self._returned.append(block)
        if self._lock.acquire(blocking=False):
            try:
                self._collect()
            finally:
                self._lock.release()

    def _collect(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            self._lent -= len(block)
            self._free.append(block)
        self._limit(min(self.most_free, KEPT_WITHIN_LIMITS) if self._limits else self.most_free)

    def _take(self, size: int) -> mmap.mmap | None:
        fitting = [block for block in self._free if size <= len(block) <= size * (1 + WASTE)]
        if not fitting:
            return None
        block = min(fitting, key=len)
        self._free.remove(block)
        return block

    def _make(self, size: int) -> mmap.mmap:
        self._most_lent = max(self._most_lent, self._lent + size)
        self._limit(self._most_lent - self._lent - size)
        try:
            # Private: a process that is forked must not see what its parent computes.
            block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"cannot allocate {size} bytes: {error.strerror}") from error
        with suppress(OSError):  # a system without large pages
            block.madvise(mmap.MADV_HUGEPAGE)
        return block

    def _limit(self, kept: int) -> None:
        free = sum(map(len, self._free))
        while free > kept:
            free -= len(self._free.pop(0))


POOL = Pool()


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns an uninitialized tensor; with three axes or more, channels (dim 1) are innermost.

    Raises:
        MemoryError: the system does not have that much memory.
    """
    size = math.prod(shape) * dtype.itemsize
    if sys.platform != "linux" or device.type != "cpu" or size < SMALLEST_BLOCK:
        order = (0, *range(2, len(shape)), 1)[: len(shape)]
        return torch.empty_permuted(shape, order, dtype=dtype, device=device)
    x = torch.frombuffer(POOL.lend(size), dtype=dtype, count=math.prod(shape))
    if len(shape) < 3:
        return x.view(*shape)
    batch, channels, *axes = shape
    return x.view(batch, *axes, channels).movedim(-1, 1)
