"""Which files of HumanML3D and KIT are trained on and evaluated, as their lists say."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from motion.errors import MotionError
from motion.features import humanml3d


@dataclass(frozen=True)
class FileSplit:
    """The use of the files of a data set.

    Attributes:
        training: the files to train on.
        validation: the files to evaluate; empty if parts of recordings are evaluated, or nothing.
        note: how many files the lists of the data set leave for which use, for people; or empty.
    """

    training: Sequence[Path]
    validation: Sequence[Path] = ()
    note: str = ""


def split_files(files: Sequence[Path], folder: Path, *, validate: bool) -> FileSplit:
    """Splits the files of a data set as its train.txt and val.txt say, if it has them.

    Args:
        folder: the folder of the data set, or of its features.
        validate: whether the files of val.txt are evaluated.

    Raises:
        MotionError: a list cannot be read, or names no file that is there.
    """
    named = humanml3d.read_split(folder, "train.txt") if folder.is_dir() else None
    if named is None:
        return FileSplit(files)
    training = select_named(files, named, f"train.txt of {folder}")
    evaluated = humanml3d.read_split(folder, "val.txt") if validate else None
    validation = []
    if evaluated is not None:
        validation = select_named(files, evaluated - named, f"val.txt of {folder}")
    note = (
        f"{len(training)} of {len(files)} files are trained on, as train.txt says; "
        f"{len(named) - len(training)} that it names are not there"
    )
    if validation:
        note += f"; {len(validation)} files are evaluated, as val.txt says"
    return FileSplit(training, validation, note)


def select_named(files: Sequence[Path], names: Collection[str], source: str) -> list[Path]:
    """Returns the files with these names, without suffix; MotionError if there are none."""
    found = [path for path in files if path.stem in names]
    if not found:
        raise MotionError(
            f"{source} names {len(names)} files, but none of the {len(files)} files that are there"
        )
    return found
