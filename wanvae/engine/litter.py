"""Files that systems leave in folders, and that nobody means when naming a folder."""

from __future__ import annotations

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
