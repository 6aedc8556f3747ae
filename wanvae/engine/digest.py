"""Digests, which tell whether a file is still the same."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wanvae.engine.storage.remote_path import Location

# Bytes of a file that are hashed at once.
BLOCK = 2**20
# Bytes at the beginning of a file that belong to its stamp.
HEAD = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What changes when a file changes, and is quick to read.

    Attributes:
        size: bytes.
        mtime: time of the last change, in nanoseconds.
        head: SHA-256 of the first 64 KiB, its first 16 hexadecimal digits; empty if not known.
    """

    size: int
    mtime: int
    head: str = ""

    def matches(self, other: Stamp) -> bool:
        """Whether both can be of one unchanged file. A head that is not known fits any head."""
        heads = {self.head, other.head} - {""}
        return (self.size, self.mtime) == (other.size, other.mtime) and len(heads) <= 1


def stamp_of(path: Path) -> Stamp:
    """Returns the stamp of a file.

    Raises:
        OSError: there is no such file.
    """
    status = path.stat()
    return Stamp(size=status.st_size, mtime=status.st_mtime_ns, head=digest_of_head(path))


def digest_of_head(path: Location, offset: int = 0, length: int = HEAD) -> str:
    """Returns the ``head`` of a stamp, of bytes of a file; empty if they cannot be read.

    Args:
        offset: the first byte.
        length: the number of bytes, of which at most 64 KiB are read.
    """
    with suppress(OSError), path.open("rb") as file:
        file.seek(offset)
        return hashlib.sha256(file.read(min(length, HEAD))).hexdigest()[:16]
    return ""


def digest_of_file(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
