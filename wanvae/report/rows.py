"""Figures as CSV, for spreadsheets."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence

from wanvae.engine.files import atomic_path


def write_rows(path: str | os.PathLike[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Writes rows as CSV, below a line of their names. All have the same; there is at least one.

    Raises:
        FileError: the file cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
