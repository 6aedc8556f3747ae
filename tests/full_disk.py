"""A full folder of temporary files."""

from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import IO

import pytest

from wanvae.engine.storage import temporary_files

# Writing to it fails as on a full disk.
FULL = Path("/dev/full")
# The files that our code writes in temporary folders.
NAMES = ("clip.pt", "file", "latents.pt")
# What people are told.
TOLD = f"^the folder of temporary files, {gettempdir()}, is full; make room there, or set TMPDIR"


class FullFolder(TemporaryDirectory[str]):
    """A temporary folder that takes files, but nothing in them."""

    def __enter__(self) -> str:
        folder = super().__enter__()
        for name in NAMES:
            Path(folder, name).symlink_to(FULL)
        return folder


def full_file(**options: object) -> IO[bytes]:
    """Returns a temporary file that takes nothing."""
    return FULL.open("w+b")


def fill_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets temporary files and folders take no bytes."""
    if not FULL.exists():
        pytest.skip(f"needs {FULL}")
    monkeypatch.setattr(temporary_files, "TemporaryDirectory", FullFolder)
    monkeypatch.setattr(temporary_files, "TemporaryFile", full_file)
