"""The memory of a process: how it is freed, and whether it ran out."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from threading import Lock

import torch

# Parameters of glibc's mallopt.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3

LARGEST_INT = 2**31 - 1
# The most that glibc sets by itself, and what goes with it.
LARGEST_THRESHOLD = 32 * 2**20
# Where memory is short, larger blocks are returned at once: pointwise layers need smaller ones.
SMALL_BLOCK = 2 * 2**20


@dataclass(frozen=True)
class MallocOptions:
    """Options of glibc's allocator for large blocks, in bytes.

    Attributes:
        mmap_threshold: blocks from this size on are returned to the system as soon as they are
            free.
        trim_threshold: free memory at the end of the heap that is kept.
        top_pad: memory that is requested beyond what is needed.
    """

    mmap_threshold: int
    trim_threshold: int
    top_pad: int = 0

    def apply(self) -> None:
        """Set the options; does nothing where the C library is not glibc."""
        if not sys.platform.startswith("linux"):
            return
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, self.mmap_threshold)
            mallopt(M_TRIM_THRESHOLD, self.trim_threshold)
            mallopt(M_TOP_PAD, self.top_pad)


USUAL = MallocOptions(LARGEST_THRESHOLD, 2 * LARGEST_THRESHOLD)
KEEPING = MallocOptions(LARGEST_INT, LARGEST_INT, 256 * 2**20)
RETURNING = MallocOptions(SMALL_BLOCK, 2 * SMALL_BLOCK)


class Allocator:
    """The allocator of this process: its options, which glibc cannot tell, and who needs others.

    Attributes:
        options: those that are in force while nothing has to return memory.
    """

    def __init__(self) -> None:
        self.options = USUAL
        self._returning = 0  # how many runs return memory at once
        self._lock = Lock()

    def choose(self, options: MallocOptions) -> None:
        """Set ``options``; while memory is returned at once, they wait until that ends."""
        with self._lock:
            self.options = options
            if not self._returning:
                options.apply()

    @contextmanager
    def returning(self) -> Iterator[None]:
        """Inside, freed memory is returned at once; the last of several threads ends it."""
        with self._lock:
            self._returning += 1
            if self._returning == 1:
                RETURNING.apply()
        try:
            yield
        finally:
            with self._lock:
                self._returning -= 1
                if not self._returning:
                    self.options.apply()


ALLOCATOR = Allocator()


def keep_freed_memory() -> None:
    """Let this process reuse freed memory instead of returning it to the system each time.

    By default glibc returns every block above 32 MB, and the next one costs a page fault for each
    4 KB. For training, whose blocks come and go in every step; it takes more memory. Does nothing
    where the C library is not glibc.
    """
    ALLOCATOR.choose(KEEPING)


def returning_freed_memory() -> AbstractContextManager[None]:
    """Inside ``with``, freed memory is returned to the system at once, so that limits hold.

    Otherwise glibc keeps hundreds of MB of holes between blocks. It costs page faults. Afterwards
    the options are what they were.
    """
    return ALLOCATOR.returning()


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; PyTorch has an exception of its own for that only on a GPU."""
    kinds = MemoryError, torch.OutOfMemoryError
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)
