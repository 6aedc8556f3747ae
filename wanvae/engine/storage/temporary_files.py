"""Temporary files and folders on the disk of this machine, such as copies of files of addresses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile, gettempdir
from typing import IO

from wanvae.engine.storage.retries import RemoteError

FULL = (ENOSPC, EDQUOT)
# So people see in the folder of temporary files what is ours.
PREFIX = "wanvae-"


class FullDiskError(RemoteError):
    """The folder of temporary files has no room, which says nothing of a file that is read."""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Gives an empty folder in the folder of temporary files. It is deleted at the end.

    Raises:
        FullDiskError: the folder of temporary files is full, here or in the block.
    """
    with telling_full_disk(), TemporaryDirectory(prefix=PREFIX) as folder:
        yield Path(folder)


@contextmanager
def temporary_file() -> Iterator[IO[bytes]]:
    """Gives an open file without a name, in the folder of temporary files.

    Raises:
        FullDiskError: as for ``temporary_folder``.
    """
    with telling_full_disk(), TemporaryFile(prefix=PREFIX) as file:
        yield file


@contextmanager
def temporary_file_in(folder: Path) -> Iterator[IO[bytes]]:
    """Gives an open file without a name, which takes room where ``folder`` is."""
    with TemporaryFile(dir=folder) as file:
        yield file


@contextmanager
def telling_full_disk() -> Iterator[None]:
    """Tells people which disk is full, if the block cannot write to the folder of temporary files.

    Raises:
        FullDiskError: so it is.
    """
    try:
        # It looks for a folder with room when it is called for the first time.
        folder = gettempdir()
    except FileNotFoundError as error:
        raise FullDiskError(
            f"there is no folder for temporary files ({error.strerror}); make room in one, or set "
            "TMPDIR to a folder with room, and run it again"
        ) from error
    try:
        yield
    except Exception as error:
        # What a server has no room for is no fault of this disk.
        if isinstance(error, RemoteError) or not is_full(error):
            raise
        raise FullDiskError(
            f"the folder of temporary files, {folder}, is full; make room there, or set TMPDIR to "
            "a folder with more room, and run it again"
        ) from error


def is_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, is that a disk is full."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    # safetensors tells it in words alone.
    if any(f"(os error {number})" in str(error) for number in FULL):
        return True
    return error.__cause__ is not None and is_full(error.__cause__)
