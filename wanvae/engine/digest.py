"""Digests, which tell whether a file is still the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

# Bytes of a file that are hashed at once.
BLOCK = 2**20


def digest_of_file(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
