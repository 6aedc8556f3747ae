"""Many motion files at once, shared by the processes of a run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from motion.commands.pipeline import tokenize_file
from motion.config import RVQVAEConfig
from motion.errors import ClipError
from motion.evaluate.evaluation import Evaluation, Summary, measure, totals, totals_of_processes
from motion.features.recording import find_files, read_recording
from motion.model import RVQVAE
from motion.tokens import digest_of, read_tokens
from wanvae.engine.files import FileError, is_nested, make_directory
from wanvae.engine.processes import gather_objects
from wanvae.engine.text import writable
from wanvae.errors import UserError

if TYPE_CHECKING:
    from accelerate import PartialState


@dataclass(frozen=True)
class FolderReport:
    """What became of the files of a folder.

    Attributes:
        written: how many files of tokens.
        kept: how many were there and complete.
        failures: why others could not be read, a line each, sorted.
    """

    written: int
    kept: int
    failures: tuple[str, ...]


def tokenize_folder(
    model: RVQVAE,
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    suffix: str,
    processes: PartialState,
    *,
    progress: bool = False,
) -> FolderReport:
    """Write the tokens of all motion files of a folder to the same tree of another.

    Files that are there, complete and of this model are kept, so that an interrupted run goes on.

    Args:
        suffix: of the files to write, .npz or .safetensors.
        processes: those of the run, which all call this, and share the files.
        progress: show a progress bar.

    Returns:
        What became of all files, in every process.

    Raises:
        ClipError: there are no files, two would become the same, or a folder is in the other.
        FileError: a file cannot be written.
    """
    targets = plan(Path(source), Path(destination), suffix, model.config)
    make_directory(destination)
    share = list(targets.items())[processes.process_index :: processes.num_processes]
    shown = progress and processes.is_main_process
    books = digest_of(model)
    written, kept, failures = 0, 0, []
    with tqdm(share, unit="file", disable=not shown) as bar:
        for target, file in bar:
            if is_complete(target, books):
                kept += 1
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                tokenize_file(model, file, target)
            except FileError:
                raise
            except (UserError, OSError) as error:
                failures.append(str(error))
            else:
                written += 1
    return gathered(FolderReport(written, kept, tuple(failures)))


def plan(source: Path, destination: Path, suffix: str, config: RVQVAEConfig) -> dict[Path, Path]:
    """The file of tokens to write, and of which motion file, for all of a folder."""
    if is_nested(source, destination):
        raise ClipError(f"{destination} must not be in {source}, nor around it; name another")
    targets: dict[Path, Path] = {}
    for file in find_files(source, config):
        target = (destination / file.relative_to(source)).with_suffix(suffix)
        if target in targets:
            raise ClipError(f"{targets[target]} and {file} would both become {target}; rename one")
        targets[target] = file
    return targets


def is_complete(path: Path, books: str) -> bool:
    """Whether a file of tokens is there, and of the model whose codebooks have that digest."""
    try:
        origin = read_tokens(path).origin
    except ClipError:
        return False
    return origin is not None and origin.books == books


def gathered(report: FolderReport) -> FolderReport:
    """The reports of all processes as one."""
    reports = gather_objects(report)
    return FolderReport(
        written=sum(report.written for report in reports),
        kept=sum(report.kept for report in reports),
        failures=tuple(sorted(line for report in reports for line in report.failures)),
    )


@dataclass(frozen=True, eq=False)
class FileEvaluation:
    """What was found out about a file.

    Attributes:
        path: where it is.
        name: its path in the folder.
        joint_names: of its skeleton.
        summary: its figures.
    """

    path: Path
    name: str
    joint_names: tuple[str, ...]
    summary: Summary


@dataclass(frozen=True)
class FolderEvaluation:
    """What was found out about the files of a folder.

    Attributes:
        source: the folder, or the file if there was only one.
        window: of so many frames codes were counted; None if of whole files.
        whole: over all frames of all files.
        files: those that could be evaluated, sorted by path.
        failures: why others could not be, a line each, in the same order.
    """

    source: str
    window: int | None
    whole: Evaluation
    files: tuple[FileEvaluation, ...]
    failures: tuple[str, ...]


def evaluate_folder(
    model: RVQVAE,
    source: str | os.PathLike[str],
    processes: PartialState,
    *,
    window: int | None = None,
    progress: bool = False,
) -> FolderEvaluation:
    """Reconstruct all motion files of a folder, or a file, with each number of layers, and compare.

    One file is in memory at a time. Files of other joints than most are left out, as those are that
    cannot be read.

    Args:
        processes: those of the run, which all call this, and share the files.
        window: as :func:`~motion.evaluate.evaluation.measure` has it.
        progress: show a progress bar.

    Returns:
        What was found out about all files, in every process.

    Raises:
        ClipError: there are no files, or none can be evaluated.
    """
    paths = find_files(source, model.config)
    shown = progress and processes.is_main_process
    files: list[FileEvaluation] = []
    failures: list[tuple[Path, str]] = []
    skeletons: dict[tuple[str, ...], tuple[str, ...]] = {}

    def evaluations() -> Iterator[Evaluation]:
        share = paths[processes.process_index :: processes.num_processes]
        with tqdm(share, unit="file", disable=not shown) as bar:
            for path in bar:
                try:
                    found = measure(model, read_recording(path, model.config), window=window)
                except (UserError, OSError) as error:
                    failures.append((path, writable(str(error))))
                    continue
                inner = path.name if path == Path(source) else path.relative_to(source).as_posix()
                # The names are kept once, not for each file.
                names = skeletons.setdefault(found.joint_names, found.joint_names)
                files.append(FileEvaluation(path, writable(inner), names, found.summary))
                yield found

    sums = totals_of_processes(totals(evaluations()))
    gathered = gather_objects((files, failures))
    files = sorted((file for part, _ in gathered for file in part), key=lambda file: file.path)
    failures = [failure for _, part in gathered for failure in part]
    if not files:
        first = min(failures)[1]
        several = f"none of the {len(failures)} files of {source} can be evaluated; the first: "
        raise ClipError(several + first if len(failures) > 1 else first)
    names, count = Counter(file.joint_names for file in files).most_common(1)[0]
    reason = f"has other joints than {count} files of the folder; evaluate it by itself"
    failures += [
        (file.path, f"{writable(str(file.path))} {reason}")
        for file in files
        if file.joint_names != names
    ]
    return FolderEvaluation(
        source=writable(str(source)),
        window=window,
        whole=sums[names],
        files=tuple(file for file in files if file.joint_names == names),
        failures=tuple(line for _, line in sorted(failures)),
    )
