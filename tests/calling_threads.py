"""The threads that work starts, which compete with a model that works at the same time."""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")


def threads_started(work: Callable[[], object]) -> int:
    """How many threads work adds to a new one, where PyTorch may share it between two."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(1) as caller:
            caller.submit(int).result()
            earlier = set(os.listdir("/proc/self/task"))
            caller.submit(work).result()
            return len(set(os.listdir("/proc/self/task")) - earlier)
    finally:
        torch.set_num_threads(before)
