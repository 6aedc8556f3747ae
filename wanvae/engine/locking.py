"""A lock on a folder, which ends with the process that holds it."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from wanvae.engine.files import unwritable
from wanvae.engine.processes import run_on_first_process
from wanvae.errors import UserError

LOCK = ".lock"
# What the system answers if another process has the lock, and if a disk knows no locks.
TAKEN = (errno.EACCES, errno.EAGAIN)
UNKNOWN = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
# The byte that Windows locks. Nobody can read a locked byte, so it is none of the text.
FAR_BYTE = 2**30


class LockedError(UserError):
    """Another process works in the folder."""


@contextmanager
def locked(folder: Path, share: str = "") -> Iterator[None]:
    """Keeps other processes out of ``folder`` until the block ends or this process dies.

    With the name of a share, processes with other shares may work in the folder, but none that
    takes the whole folder.

    The system holds the lock, so a killed process leaves none. Processes that this one forks do not
    hold it, and threads of this process are not kept out. On a disk that knows no locks, nothing is
    locked. The file of the lock, ``.lock`` in the folder, is removed at the end, if the system
    removes files that are open; Windows does not.

    Raises:
        LockedError: another process has the lock.
        FileError: the file of the lock cannot be written.
    """
    path = folder / (f"{LOCK}.{share}" if share else LOCK)
    held = False
    while not held:
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise unwritable(path, error) from error
        with file:
            take(file, folder)
            # A process that ended in between has removed the file, and a third may have a new one.
            if not is_file_at(file, path):
                continue
            try:
                for other in [folder / LOCK] if share else folder.glob(f"{LOCK}.*"):
                    refuse_lock(other)
            except LockedError:
                path.unlink()
                raise
            held = True
            with suppress(OSError):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
            try:
                yield
            finally:
                with suppress(OSError):
                    path.unlink()


@contextmanager
def locked_by_run(folder: Path) -> Iterator[None]:
    """As ``locked``, for all processes of a run: the first process has the lock for them.

    Raises:
        LockedError, FileError: as ``locked``, in the first process.
        SystemExit: so it is, in the other processes.
    """
    with ExitStack() as held:
        run_on_first_process(lambda: held.enter_context(locked(folder)))
        yield


def refuse_lock(path: Path) -> None:
    """Raises LockedError if another process has a lock."""
    with suppress(FileNotFoundError), path.open("r+", encoding="utf-8") as file:
        take(file, path.parent)


def take(file: TextIO, folder: Path) -> None:
    """Locks ``file`` for this process.

    Raises:
        LockedError: another process has the lock.
        FileError: the system cannot lock it, although the disk knows locks.
    """
    try:
        lock(file)
    except OSError as error:
        if error.errno in TAKEN:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise LockedError(
                f"another process works in {folder} ({holder}): wait until it ends, or name "
                "another folder"
            ) from error
        if error.errno not in UNKNOWN:
            raise unwritable(file.name, error) from error


def lock(file: TextIO) -> None:
    """Locks ``file``, or raises the OSError of the system."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(file.fileno(), FAR_BYTE, os.SEEK_SET)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        # Unlike flock, lockf gives nothing to processes that are forked.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_file_at(file: TextIO, path: Path) -> bool:
    """Whether an open file is still the one that ``path`` names."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
