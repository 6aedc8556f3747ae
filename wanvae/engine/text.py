"""Text for messages and files."""

from __future__ import annotations

import re
from collections.abc import Sequence

# How many entries of a long list an error shows.
SHOWN = 3
# The number of characters of an entry that an error shows.
LONGEST = 300


def writable(text: str) -> str:
    """Returns ``text`` with "?" for each byte that is no text, which names of files may have."""
    return text.encode(errors="replace").decode()


def first_sentence(error: BaseException) -> str:
    return re.split(r"\.\s|\n", str(error).strip() or type(error).__name__)[0].rstrip(".")


def shortened(text: str) -> str:
    """Returns a text for a line of a message: printable, and without the end of a very long one."""
    end = "..." if len(text) > LONGEST else ""
    return "".join(c if c.isprintable() else "?" for c in text[:LONGEST]) + end


def first_few(entries: Sequence[str]) -> str:
    """Returns the first of ``entries``, comma-separated, and how many more there are.

    They are names in files that others wrote, so what would break a line is "?".
    """
    more = len(entries) - SHOWN
    return ", ".join(shortened(entry) for entry in entries[:SHOWN]) + (
        f" and {more} more" if more > 0 else ""
    )
