"""The memory of a process: how it is freed, and whether it ran out."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Parameters of glibc's mallopt.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3

LARGEST_INT = 2**31 - 1
TOP_PAD = 256 * 2**20
# Blocks above this are returned at once where memory is short: not those of pointwise layers.
SMALL_BLOCK = 2 * 2**20
# The most that glibc sets by itself, and the default that goes with it.
LARGEST_THRESHOLD = 32 * 2**20


def keep_freed_memory() -> None:
    """Let this process reuse freed memory instead of returning it to the system each time.

    By default glibc returns every block above 32 MB, and the next one costs a page fault for each
    4 KB. For training, whose blocks come and go in every step; it takes more memory. It does
    nothing where the C library is not glibc.
    """
    set_malloc(mmap_threshold=LARGEST_INT, trim_threshold=LARGEST_INT, top_pad=TOP_PAD)


@contextmanager
def returning_freed_memory() -> Iterator[None]:
    """Return freed memory to the system at once, so that budgets hold.

    Otherwise glibc keeps hundreds of MB of holes between blocks. It costs page faults.
    """
    set_malloc(mmap_threshold=SMALL_BLOCK, trim_threshold=2 * SMALL_BLOCK, top_pad=0)
    try:
        yield
    finally:
        limit = LARGEST_THRESHOLD
        set_malloc(mmap_threshold=limit, trim_threshold=2 * limit, top_pad=0)


def set_malloc(*, mmap_threshold: int, trim_threshold: int, top_pad: int) -> None:
    """Set glibc's options for large blocks, in bytes."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, mmap_threshold)
        mallopt(M_TRIM_THRESHOLD, trim_threshold)
        mallopt(M_TOP_PAD, top_pad)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; PyTorch has an exception of its own for that only on a GPU."""
    kinds = MemoryError, torch.OutOfMemoryError
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)
