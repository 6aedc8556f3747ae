"""Memory for intermediate results."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}

# Of Linux' madvise.
MADV_HUGEPAGE = 14
PAGE = 4096
# Smaller blocks are mostly reused by the allocator, and cost no page faults.
SMALLEST_LARGE_BLOCK = 2**22

madvise = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory; channels are innermost if there are two axes of space or more."""
    memory_format = MEMORY_FORMATS.get(len(shape), torch.contiguous_format)
    x = torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format)
    if device.type == "cpu":
        use_huge_pages(x)
    return x


def use_huge_pages(x: Tensor) -> None:
    """Ask Linux for pages of 2 MB instead of 4 KB for ``x``, which nobody has written to yet.

    The C library gives large blocks back to the system when they are freed, so they cost a page
    fault for each page every time: with small pages a third of the time of a decoder.
    """
    size = x.numel() * x.element_size()
    if madvise is not None and size >= SMALLEST_LARGE_BLOCK:
        start = -(-x.data_ptr() // PAGE) * PAGE
        length = (x.data_ptr() + size - start) // PAGE * PAGE
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), MADV_HUGEPAGE)
