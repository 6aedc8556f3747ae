"""A lock on a folder, which ends with the process that holds it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wanvae.engine.files import unwritable
from wanvae.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
# What the system answers if another process has the lock, and if a disk knows no locks.
TAKEN = (errno.EACCES, errno.EAGAIN)
UNKNOWN = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class LockedError(UserError):
    """Another process works in the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of ``folder`` until the block ends or this process dies.

    The system holds the lock, so a killed process leaves none. Processes that this one forks do not
    hold it. On a disk that knows no locks, and on Windows, nothing is locked.

    Raises:
        LockedError: another process has the lock.
        FileError: the file of the lock, ``.lock`` in the folder, cannot be written.
    """
    path = folder / LOCK
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise unwritable(path, error) from error
    with file:
        if fcntl is not None:
            try:
                # Unlike flock, lockf gives nothing to processes that are forked.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in TAKEN:
                    file.seek(0)
                    holder = file.read().strip() or "unknown"
                    raise LockedError(
                        f"another process works in {folder} ({holder}): wait until it ends, or "
                        "name another folder"
                    ) from error
                if error.errno not in UNKNOWN:
                    raise unwritable(path, error) from error
        with suppress(OSError):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield
