"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import glob
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wanvae.engine.storage.remote_path import Location, RemotePath
from wanvae.engine.storage.temporary_files import temporary_folder
from wanvae.engine.text import first_sentence
from wanvae.errors import UserError

# The names that ``temporary_sibling`` gives.
TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}(\.[^.]*)?", re.DOTALL)

# What stands for a number in the name of a sequence of images.
NUMBER = re.compile(r"%0?\d*d")
# Bytes of the longest suffix that a temporary name keeps. Writers read it, as ".safetensors".
LONGEST_SUFFIX = 32
# Bytes of the longest name of a file, where the system does not tell it.
LONGEST_NAME = 255


class FileError(UserError):
    """A file or folder cannot be read or written. The message says what to do."""


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path beside ``path`` to write a file to; it becomes ``path`` at the end.

    If the block raises an error, the temporary file is deleted and ``path`` stays as it is. The
    file of an address is written to a local disk, and uploaded as a whole at the end.

    Raises:
        FileError: the folder of ``path`` is missing, ``path`` is a folder, or writing fails.
        RemoteError: the upload fails, or the local disk is full.
    """
    if isinstance(path, RemotePath):
        with temporary_folder() as folder:
            local = folder / path.name
            yield local
            path.upload(local)
        return
    path = Path(path)
    if os.path.isdir(path):
        raise FileError(f"{path} cannot be written: it is a directory; name a file")
    temporary = temporary_sibling(path)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        # safetensors writes files that only their owner may read, whatever the umask.
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """As ``atomic_path``, for a folder. ``path`` must be missing or empty.

    Raises:
        FileError: ``path`` is a file or not empty, or writing fails.
    """
    path = Path(path)
    temporary = temporary_sibling(path)
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FileError(f"{path} cannot be written: it exists; name a new directory")
        temporary.mkdir()
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_directory(path: str | os.PathLike[str]) -> None:
    """Creates a folder, unless it exists. At an address, folders come about with their files.

    Raises:
        FileError: its parent is missing, or ``path`` is a file.
    """
    if isinstance(path, RemotePath):
        return
    path = Path(path)
    try:
        path.mkdir(exist_ok=True)
    except FileNotFoundError:
        raise FileError(
            f"{path} cannot be created: make the directory {path.parent} first"
        ) from None
    except OSError as error:
        raise FileError(f"{path} cannot be created: {error.strerror}") from error


def refuse_overwriting(
    output: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str] | None]
) -> None:
    """Raises FileError if ``output`` is one of ``inputs``, or a file in one of them.

    Links and names that differ in case are the same file if the system says so. An input may also
    be a sequence of images, like frame-%04d.png or frame-*.png, or anything that is not a file, or
    None.
    """
    for source in (os.fspath(source) for source in inputs if source is not None):
        if os.path.exists(source):
            taken = os.path.exists(output) and (
                os.path.samefile(source, output)
                or (os.path.isfile(output) and is_in(Path(output), Path(source)))
            )
        else:
            taken = is_numbered_image(output, source) or is_named_by(output, source)
        if taken:
            raise FileError(
                f"{output} would be overwritten, but {source} is to be read: name another output"
            )


def is_numbered_image(path: str | os.PathLike[str], pattern: str) -> bool:
    """Whether a path is, or would be, one of a sequence of images like frames/%04d.png."""
    path, (folder, name) = Path(path), os.path.split(pattern)
    images = numbered(name)
    if not is_numbered(name) or not os.path.isdir(folder or "."):
        return False
    if images.fullmatch(path.name) and os.path.realpath(path.parent) == os.path.realpath(folder):
        return True
    found = (Path(folder, name) for name in os.listdir(folder or ".") if images.fullmatch(name))
    return path.exists() and any(path.samefile(image) for image in found)


def is_named_by(path: str | os.PathLike[str], pattern: str) -> bool:
    """Whether a path is one of the files that a glob names, like frames/*.png."""
    if not glob.has_magic(pattern) or not os.path.exists(path):
        return False
    return any(os.path.samefile(path, found) for found in named_by(pattern))


def named_by(pattern: str) -> Iterator[str]:
    """Yields the files and folders that a glob names. "[1]" in a folder's name is no class."""
    folder, name = os.path.split(pattern)
    wanted = os.path.join(glob.escape(folder), name) if os.path.isdir(folder) else pattern
    return glob.iglob(wanted, recursive=True)


def is_numbered(name: str) -> bool:
    """Returns whether a name stands for a sequence of images, like frame-%04d.png."""
    return NUMBER.search(name) is not None


def numbered(pattern: str) -> re.Pattern[str]:
    """Returns an expression for the names of a sequence of images, like frame-%04d.png."""
    return re.compile(r"\d+".join(map(re.escape, NUMBER.split(pattern))))


def is_nested(path: Location, other: Location) -> bool:
    """Whether one of two folders is in the other, or both are the same."""
    return is_in(path, other) or is_in(other, path)


def is_in(path: Location, folder: Location) -> bool:
    """Whether a path is in a folder or below it, or is the folder."""
    if isinstance(path, RemotePath) or isinstance(folder, RemotePath):
        return isinstance(path, RemotePath) and path.is_relative_to(folder)
    return path.resolve().is_relative_to(folder.resolve())


def remove_temporaries(directory: Path, names: Collection[str] | None = None) -> None:
    """Deletes the temporary files of killed processes in ``directory`` and below.

    Args:
        names: only the temporary files of these files, as paths relative to ``directory``.

    Raises:
        FileError: a file cannot be deleted.
    """
    for path in list(directory.rglob(".*")):
        match = TEMPORARY.fullmatch(path.name)
        if match is None or not path.is_file():
            continue
        final = path.with_name(match[1] + (match[2] or ""))
        if names is None or final.relative_to(directory).as_posix() in names:
            try:
                path.unlink()
            except OSError as error:
                raise unwritable(path, error) from error


def temporary_sibling(path: Path) -> Path:
    """Returns an unused path in the folder of ``path``, with the suffix of ``path``.

    A rename within a folder cannot fail halfway. The name is cut where it would be too long.

    Raises:
        FileError: the folder is missing, or the name of ``path`` itself is too long.
    """
    if not os.path.isdir(path.parent):
        raise FileError(f"{path} cannot be written: make the directory {path.parent} first")
    try:
        with suppress(FileNotFoundError):
            os.lstat(path)
    except OSError as error:
        raise unwritable(path, error) from error
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= LONGEST_SUFFIX else ""
    token = secrets.token_hex(4)
    room = longest_name(path.parent) - len(os.fsencode(f"..{token}{suffix}"))
    stem = os.fsencode(path.name.removesuffix(suffix))[:room].decode(errors="ignore")
    return path.parent / f".{stem or 'file'}.{token}{suffix}"


def longest_name(folder: Path) -> int:
    """Returns how many bytes the name of a file in ``folder`` may have."""
    if not hasattr(os, "pathconf"):
        return LONGEST_NAME
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError):
        return LONGEST_NAME


def unwritable(path: str | os.PathLike[str], error: Exception) -> FileError:
    reason = first_sentence(error)
    return FileError(f"{path} cannot be written ({reason}); what was there is untouched")
