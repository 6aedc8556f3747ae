"""Files of a folder that a command passes over: what systems leave there, and other kinds of file.

The first are passed over in silence, because nobody means them when naming a folder. The number of
the others is told.
"""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath

# Lower-case names of files and folders, besides hidden ones such as the "._name" of macOS.
LITTER = frozenset(
    {
        "$recycle.bin",
        "@eadir",
        "__macosx",
        "desktop.ini",
        "ehthumbs.db",
        "system volume information",
        "thumbs.db",
    }
)


def is_litter(path: str) -> bool:
    """Whether a file or a folder around it is hidden, or left there by a system.

    Args:
        path: relative to the folder that was named, with "/" between its parts.
    """
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    return any(part.startswith(".") or part.lower() in LITTER for part in parts)


def suffix_of(name: str) -> str:
    """Returns the suffix of a file in lower case; empty if it has none."""
    return PurePosixPath(name).suffix.lower()


def describe_ignored(ignored: Counter[str]) -> str:
    """Returns how many files of which suffix were passed over, the most first; empty if none."""
    kinds = sorted(ignored.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in kinds)
