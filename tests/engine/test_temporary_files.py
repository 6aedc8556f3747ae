"""Temporary files and folders, and what is told if there is no room for them."""

import os
import tempfile
from contextlib import AbstractContextManager, ExitStack
from errno import EACCES, EDQUOT, ENOENT, ENOSPC
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from tests.full_disk import FULL, TOLD, fill_up
from wanvae.engine.files import FileError, unwritable
from wanvae.engine.storage import temporary_files
from wanvae.engine.storage.retries import RemoteError, retry
from wanvae.engine.storage.temporary_files import (
    FullDiskError,
    temporary_file,
    temporary_file_in,
    temporary_folder,
)

BY_RUST = SafetensorError("Error while serializing: I/O error: No space left (os error 28)")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def caused(error: Exception, cause: Exception) -> Exception:
    """Returns an error with what it was raised from."""
    error.__cause__ = cause
    return error


def test_they_are_gone_at_the_end(place: Path) -> None:
    with temporary_folder() as folder:
        assert folder.parent == place and folder.name.startswith("wanvae-")
        (folder / "a").write_bytes(b"1")
    with temporary_file() as file, temporary_file_in(place) as other:
        file.write(b"1")
        other.write(b"1")
    with pytest.raises(ZeroDivisionError), temporary_folder() as folder:
        (folder / "a").mkdir()
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), temporary_folder(), temporary_file():
        raise KeyboardInterrupt
    assert not [*place.iterdir()]


def test_one_that_is_never_closed_says_nothing(place: Path) -> None:
    held = ExitStack()
    held.enter_context(temporary_folder())
    held.enter_context(temporary_file())
    del held
    assert not [*place.iterdir()]


@pytest.mark.parametrize("make", [temporary_file, temporary_folder])
@pytest.mark.parametrize(
    "error",
    [
        OSError(ENOSPC, "No space left on device"),
        OSError(EDQUOT, "Disk quota exceeded"),
        BY_RUST,
        caused(unwritable("a", BY_RUST), BY_RUST),
        caused(FileError("a cannot be written"), OSError(ENOSPC, "No space left on device")),
    ],
    ids=repr,
)
def test_a_full_disk_is_told(
    place: Path, make: type[AbstractContextManager[object]], error: Exception
) -> None:
    told = f"^the folder of temporary files, {place}, is full; make room there, or set TMPDIR"
    with pytest.raises(FullDiskError, match=told) as caught, make():
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        OSError(EACCES, "Permission denied"),
        FileNotFoundError(ENOENT, "No such file or directory"),
        ValueError("28"),
        caused(RemoteError("cannot write s3://a"), OSError(ENOSPC, "No space left on device")),
        FullDiskError("told already"),
    ],
    ids=repr,
)
def test_other_errors_stay_what_they_are(place: Path, error: Exception) -> None:
    """So does the error of a server that has no room."""
    with pytest.raises(type(error)) as caught, temporary_folder():
        raise error
    assert caught.value is error


def test_a_file_in_a_folder_takes_no_room_of_temporary_files(place: Path) -> None:
    error = OSError(ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left") as caught, temporary_file_in(place):
        raise error
    assert caught.value is error


@pytest.mark.skipif(not FULL.exists(), reason=f"needs {FULL}")
def test_a_disk_without_room_for_a_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    fill_up(monkeypatch)
    with pytest.raises(FullDiskError, match=TOLD), temporary_file() as file:
        file.write(b"1")
    with pytest.raises(FullDiskError, match=TOLD), temporary_folder() as folder:
        (folder / "file").write_bytes(b"1")


@pytest.mark.parametrize("name", ["TemporaryDirectory", "TemporaryFile"])
def test_a_disk_without_room_for_a_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(**options: object) -> None:
        raise OSError(ENOSPC, "No space left on device")

    monkeypatch.setattr(temporary_files, name, refuse)
    make = temporary_folder if name == "TemporaryDirectory" else temporary_file
    with pytest.raises(FullDiskError, match=TOLD), make():
        pass


def test_no_folder_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python looks for a folder in which it can write some bytes."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(os, "open", refuse)
    told = "^there is no folder for temporary files .* or set TMPDIR"
    with pytest.raises(FullDiskError, match=told), temporary_folder():
        pass


def test_a_full_disk_is_tried_once(place: Path) -> None:
    tries = []

    def fetch() -> None:
        tries.append(1)
        with temporary_folder():
            raise OSError(ENOSPC, "No space left on device")

    with pytest.raises(FullDiskError):
        retry(fetch, "read it")
    assert len(tries) == 1


def test_what_safetensors_says(tmp_path: Path) -> None:
    """It tells in words alone why it cannot write."""
    with pytest.raises(SafetensorError, match=f"os error {ENOENT}"):
        save_file({"a": torch.zeros(1)}, tmp_path / "missing" / "a.safetensors")
