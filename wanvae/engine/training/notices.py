"""What is told of the files of a run before its first step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

# The number of files that a warning names.
SHOWN = 10


def warn_about(problem: str, lines: Sequence[str], result: str = "they are left out") -> None:
    """Warns of files, in one warning that names the first ones.

    Args:
        problem: how many files have which problem.
        lines: a line for each of them.
        result: what happens to them.
    """
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    message = [f"{problem}; {result}:", *lines[:SHOWN], *more]
    warnings.warn("\n  ".join(message), stacklevel=2)
