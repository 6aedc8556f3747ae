"""What several commands print."""

from __future__ import annotations

from collections.abc import Sequence

# How many lines of a list are printed.
SHOWN = 10


def print_some(label: str, lines: Sequence[str]) -> None:
    """Prints the first lines of a list, each after ``label``, and how many more there are."""
    for line in lines[:SHOWN]:
        print(f"{label}: {line}")
    if len(lines) > SHOWN:
        print(f"{label}: {len(lines) - SHOWN} more")
