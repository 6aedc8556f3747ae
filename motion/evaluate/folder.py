"""The evaluation of a folder of motion files, shared by the processes of a run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from motion.errors import MotionError
from motion.evaluate.evaluation import (
    MotionEvaluation,
    MotionSummary,
    add_up,
    add_up_processes,
    measure,
)
from motion.evaluate.evaluators.judging import Judgement
from motion.features.actors import warn_of_proportions
from motion.features.recording import Recording, find_files, read_recording
from motion.features.units import warn_of_units
from motion.files.reading import GUESSED, Reading
from motion.models import MotionModel
from wanvae.engine.finite import NotFiniteError
from wanvae.engine.processes import gather_objects
from wanvae.engine.sharing import share_files
from wanvae.engine.text import writable
from wanvae.errors import UserError

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class FileEvaluation:
    """The figures of one file.

    Attributes:
        path: the file.
        name: its path in the folder.
        joint_names: the names of the joints of its skeleton.
        summary: its figures.
    """

    path: Path
    name: str
    joint_names: tuple[str, ...]
    summary: MotionSummary


@dataclass(frozen=True)
class FolderEvaluation:
    """The figures of the files of a folder.

    Attributes:
        source: the folder, or the file if only one was given.
        window: codes were counted in windows of so many frames; None is whole files.
        whole: the sums over all frames of all files.
        files: the files that were evaluated, sorted by path.
        failures: a line for each file that was left out, sorted by path.
        ignored: how many files of the folder are no motion files, by suffix; or empty.
        reading: how the files were read.
        judgement: what the evaluators say; None if there are none.
        missing: how many of the files that were named are not there.
    """

    source: str
    window: int | None
    whole: MotionEvaluation
    files: tuple[FileEvaluation, ...]
    failures: tuple[str, ...]
    ignored: str = ""
    reading: Reading = GUESSED
    judgement: Judgement | None = None
    missing: int = 0


def measure_files(
    model: MotionModel,
    paths: Sequence[Path],
    source: Path,
    processes: PartialState,
    measure: Callable[[Recording], T],
    reading: Reading,
    failures: list[tuple[Path, str]],
    *,
    progress: bool,
) -> Iterator[tuple[Path, str, T]]:
    """Yields the files of this process, with their names in the folder ``source`` and figures.

    Args:
        measure: returns the figures of a recording.
        failures: gets the path and a line for each file that cannot be read.
    """
    for path in share_files(paths, processes, progress=progress):
        try:
            recording = read_recording(path, model.config, reading, model.skeleton)
            warn_of_units(recording, model.normalizer, shown=True)
            warn_of_proportions(recording.matching, model.skeleton)
            measured = measure(recording)
        except NotFiniteError as error:
            failures.append((path, writable(f"{path}: {error}")))
            continue
        except (UserError, OSError) as error:
            failures.append((path, writable(str(error))))
            continue
        inner = path.name if path == source else path.relative_to(source).as_posix()
        yield path, writable(inner), measured


def gather_files(
    files: Sequence[T],
    failures: Sequence[tuple[Path, str]],
    source: str | os.PathLike[str],
    key: Callable[[T], Path],
) -> tuple[list[T], list[tuple[Path, str]]]:
    """Returns the files and the failures of all processes, sorted by path.

    Args:
        key: returns the path of a file.

    Raises:
        MotionError: there are no files.
    """
    gathered = gather_objects((files, failures))
    measured = sorted((file for part, _ in gathered for file in part), key=key)
    failed = sorted(failure for _, part in gathered for failure in part)
    if not measured:
        first = failed[0][1]
        several = f"none of the {len(failed)} files of {source} can be evaluated; the first: "
        raise MotionError(several + first if len(failed) > 1 else first)
    return measured, failed


def evaluate_folder(
    model: MotionModel,
    source: str | os.PathLike[str],
    processes: PartialState,
    *,
    window: int | None = None,
    reading: Reading = GUESSED,
    names: Collection[str] | None = None,
    progress: bool = False,
) -> FolderEvaluation:
    """Reconstructs all motion files of a folder, or one file, and compares them with the originals.

    One file is in memory at a time. Files that cannot be read are left out, and so are files with
    other joints than most files have.

    Args:
        processes: the processes of the run. They all call this function and share the files.
        window: count the codes of all windows of so many frames; None is whole files.
        reading: what the files do not tell.
        names: the names without suffix of the files to take; None is all files.
        progress: show a progress bar.

    Returns:
        The figures of all files, in every process.

    Raises:
        MotionError: there are no files, or none can be evaluated.
    """
    files: list[FileEvaluation] = []
    failures: list[tuple[Path, str]] = []
    skeletons: dict[tuple[str, ...], tuple[str, ...]] = {}
    found, missing = find_files(source, model.config), 0
    if names is not None:
        chosen = [path for path in found.paths if path.stem in names]
        if not chosen:
            raise MotionError(f"{source} has none of the {len(names)} files that are named")
        missing = len(set(names) - {path.stem for path in chosen})
        found = replace(found, paths=chosen)

    def evaluations() -> Iterator[MotionEvaluation]:
        for path, name, measured in measure_files(
            model,
            found.paths,
            Path(source),
            processes,
            lambda recording: measure(model, recording, window=window),
            reading,
            failures,
            progress=progress,
        ):
            # The names are kept once, not for each file.
            joints = skeletons.setdefault(measured.joint_names, measured.joint_names)
            files.append(FileEvaluation(path, name, joints, measured.summary))
            yield measured

    sums = add_up_processes(add_up(evaluations()))
    files, failures = gather_files(files, failures, source, lambda file: file.path)
    joints, count = Counter(file.joint_names for file in files).most_common(1)[0]
    reason = f"has other joints than {count} files of the folder; evaluate it by itself"
    failures += [
        (file.path, f"{writable(str(file.path))} {reason}")
        for file in files
        if file.joint_names != joints
    ]
    return FolderEvaluation(
        source=writable(str(source)),
        window=window,
        whole=sums[joints],
        files=tuple(file for file in files if file.joint_names == joints),
        failures=tuple(line for _, line in sorted(failures)),
        ignored=found.ignored,
        reading=reading,
        missing=missing,
    )
