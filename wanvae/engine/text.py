"""Text for messages and files."""

from __future__ import annotations

import re
from collections.abc import Sequence

# How many entries of a long list an error shows.
SHOWN = 3


def writable(text: str) -> str:
    """Returns ``text`` with "?" for each byte that is no text, which names of files may have."""
    return text.encode(errors="replace").decode()


def first_sentence(error: BaseException) -> str:
    return re.split(r"\.\s|\n", str(error).strip() or type(error).__name__)[0].rstrip(".")


def first_few(entries: Sequence[str]) -> str:
    """The first of ``entries``, comma-separated, and how many more there are."""
    more = len(entries) - SHOWN
    return ", ".join(entries[:SHOWN]) + (f" and {more} more" if more > 0 else "")
