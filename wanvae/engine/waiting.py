"""How long the threads of PyTorch on a CPU wait actively for more work, before they sleep."""

from __future__ import annotations

import os

# Rounds of GNU OpenMP, about a tenth of a millisecond: enough from one layer to the next. Its own
# 300,000 rounds take the cores of threads and processes that read, compare and write meanwhile.
_ROUNDS = 10_000


def wait_briefly() -> None:
    """Limits the active waiting, unless the environment says how threads wait.

    It has to come before PyTorch is loaded, and does nothing after that.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_ROUNDS))
