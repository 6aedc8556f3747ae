"""What is told of the files of a run before its first step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

# The number of files that a warning names.
SHOWN = 10


def warn_about(
    problem: str,
    lines: Sequence[str],
    result: str = "they are left out",
    *,
    count: int | None = None,
) -> None:
    """Warns of files, in one warning that names the first ones.

    Args:
        problem: how many files have which problem.
        lines: a line for each of them.
        result: what happens to them.
        count: how many there are, if ``lines`` are only the first ones.
    """
    count = len(lines) if count is None else count
    more = [f"and {count - SHOWN} more"] if count > SHOWN else []
    message = [f"{problem}; {result}:", *lines[:SHOWN], *more]
    warnings.warn("\n  ".join(message), stacklevel=2)
