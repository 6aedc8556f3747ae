"""Figures as CSV, for spreadsheets."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence

from wanvae.engine.files import atomic_path


def write_rows(path: str | os.PathLike[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows of the same names, at least one, below a line of these.

    Raises:
        CheckpointError: they cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
