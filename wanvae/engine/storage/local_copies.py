"""Copies of files of addresses on the disk of this machine, in the folder of temporary files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from tempfile import gettempdir

from wanvae.engine.storage.retries import RemoteError

FULL = (ENOSPC, EDQUOT)


@contextmanager
def telling_full_disk() -> Iterator[None]:
    """Tells people which disk is full, if the block cannot write a copy. The address has room.

    Raises:
        RemoteError: the disk with the folder of temporary files is full.
    """
    try:
        yield
    except Exception as error:
        # Whoever writes the copy may have told that the copy cannot be written.
        cause = error.__cause__ or error
        if not isinstance(cause, OSError) or cause.errno not in FULL:
            raise
        raise RemoteError(
            f"the folder of temporary files, {gettempdir()}, is full; make room there, or set "
            "TMPDIR to a folder with more room, and run it again"
        ) from error
