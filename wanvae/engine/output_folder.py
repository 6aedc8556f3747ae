"""The folder that a long job writes. An interrupted job goes on in it with the same settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

from wanvae.engine.files import is_nested, make_directory, remove_temporaries
from wanvae.engine.json_files import read_value, write_value
from wanvae.engine.locking import locked
from wanvae.engine.storage.remote_path import Location, RemotePath
from wanvae.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def take_folder(
    path: Location,
    settings: T,
    what: str,
    differences: Callable[[T, T], list[str]],
    held: ExitStack,
    share: str = "",
) -> bool:
    """Takes the folder of ``path`` for a job: a new folder, or one of the same job.

    Other jobs are kept out of the folder until ``held`` is closed. Object stores know no locks, so
    at an address nobody is kept out. One process of the job calls this function.

    Args:
        path: the settings file in the folder. A new folder gets it.
        settings: a dataclass with everything that the results depend on.
        what: what the folder holds, for messages, such as "a data set".
        differences: says in words what of the second settings is not the same as in the first.
        held: gets the lock of the folder.
        share: the name of a share of the folder, if the job leaves other shares to other jobs.
            Then temporary files stay, because they may be of another job.

    Returns:
        Whether the job was started before. Temporary files that it left are then removed.

    Raises:
        UserError: the folder is of other settings, or holds other files.
        LockedError: another job works in the folder.
        FileError: the folder cannot be written.
    """
    folder = path.parent
    make_directory(folder)
    if isinstance(folder, RemotePath):
        folder.check_writable()
    else:
        held.enter_context(locked(folder, share))
    if not path.exists():
        # Another job may have begun with its share just now.
        if has_files(folder) and not (share and path.exists()):
            raise UserError(f"{folder} has other files in it; name a new folder")
        write_value(path, settings, indent=2)
        return False
    different = differences(settings, read_settings(path, type(settings), what))
    if different:
        raise UserError(
            f"{folder} was written with other settings: {'; '.join(different)}; "
            "give the same settings again, or name another folder"
        )
    if not isinstance(folder, RemotePath) and not share:
        remove_temporaries(folder)
    return True


def has_files(folder: Location) -> bool:
    """Whether there are files in a folder, besides hidden ones."""
    if isinstance(folder, RemotePath):
        return any(not name.startswith(".") for name in folder.files())
    return any(not file.name.startswith(".") for file in folder.iterdir())


def read_settings(path: Location, cls: type[T], what: str) -> T:
    """Returns the settings of a job from their file.

    Args:
        what: what the folder holds, for messages.

    Raises:
        UserError: the file is not of this version.
        OSError: the file cannot be read.
    """
    try:
        return read_value(path, cls)
    except UserError as error:
        raise UserError(
            f"{path} does not hold the settings of {what} of this version ({error}); "
            "name another folder"
        ) from error


def describe_differences(ours: Mapping[str, object], theirs: Mapping[str, object]) -> list[str]:
    """Says in words which of ``theirs`` differ from ``ours``."""
    return [
        f"{name} is {theirs[name]!r}, not {value!r}"
        for name, value in ours.items()
        if theirs[name] != value
    ]


def refuse_nested(source: Location, destination: Location) -> None:
    """Raises UserError if one of two folders lies inside the other."""
    if is_nested(source, destination):
        raise UserError(f"{destination} must not be in {source}, nor around it; name another")
