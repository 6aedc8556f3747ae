"""How a process handles the memory it frees."""

from __future__ import annotations

import ctypes
import sys

# Parameters of glibc's mallopt.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3

LARGEST_INT = 2**31 - 1
TOP_PAD = 256 * 2**20


def keep_freed_memory() -> None:
    """Let this process reuse freed memory instead of returning it to the system each time.

    By default glibc returns every block above 32 MB, and the next one costs a page fault for each
    4 KB: on large frames half of the time. For commands, which own their process; it does nothing
    where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_INT)
        mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
        mallopt(M_TOP_PAD, TOP_PAD)
