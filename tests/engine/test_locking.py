"""A lock on a folder: one process at a time, whatever the system and however a process ends."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import pytest

from tests.helpers import occupied
from wanvae.engine import locking
from wanvae.engine.files import FileError
from wanvae.engine.locking import LOCK, LockedError, locked, locked_by_run


def test_a_folder_in_use_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with occupied(tmp_path):
        with pytest.raises(LockedError, match=r"works in .* \(process 1 on there\): wait until"):
            locked(tmp_path).__enter__()
        # The lock of the other process is still there.
        with pytest.raises(LockedError), locked_by_run(tmp_path):
            pass
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert not list(tmp_path.iterdir())


def test_a_file_that_its_holder_removes_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third process could have locked the new file of that name."""
    lock, removed = locking.lock, []

    def late(file: TextIO) -> None:
        lock(file)
        if len(removed) < 2:
            (tmp_path / LOCK).unlink()
            removed.append(file)
            if len(removed) == 2:
                (tmp_path / LOCK).touch()

    monkeypatch.setattr(locking, "lock", late)
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith("process ")
    assert len(removed) == 2 and all(file.closed for file in removed)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EIO])
def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(file: TextIO) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locking, "lock", refuse)
    if number == errno.ENOLCK:
        with locked(tmp_path):
            pass
    else:
        with pytest.raises(FileError, match="cannot be written"), locked(tmp_path):
            pass


def test_windows_locks_a_byte_behind_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is locked there cannot be read, and who has the lock must be readable."""
    held: set[tuple[int, int]] = set()

    def locking_of_windows(descriptor: int, mode: int, count: int) -> None:
        assert mode == 2 and count == 1
        place = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
        if place in held:
            raise OSError(errno.EACCES, "Permission denied")
        held.add(place)

    monkeypatch.setattr(sys, "platform", "win32")
    stub = SimpleNamespace(LK_NBLCK=2, locking=locking_of_windows)
    monkeypatch.setitem(sys.modules, "msvcrt", stub)
    with locked(tmp_path):
        ((_, byte),) = held
        assert byte >= 2**20 and (tmp_path / LOCK).stat().st_size < 100
        with pytest.raises(LockedError, match=rf"\(process {os.getpid()} on "), locked(tmp_path):
            pass
