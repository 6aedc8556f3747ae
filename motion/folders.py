"""Many motion files at once, shared by the processes of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from motion.config import RVQVAEConfig
from motion.errors import ClipError
from motion.model import RVQVAE
from motion.pipeline import tokenize_file
from motion.recording import Recording, find_files, read_recording
from motion.tokens import digest_of, read_tokens
from wanvae.engine.checkpoint import CheckpointError, is_nested, make_directory
from wanvae.engine.processes import objects_of_processes

if TYPE_CHECKING:
    from accelerate import PartialState


class Recordings(Sequence[Recording]):
    """The recordings of files, each read when it is asked for.

    Args:
        config: of the model they are for.
        progress: show a bar while iterating.
    """

    def __init__(
        self, files: Sequence[Path], config: RVQVAEConfig, *, progress: bool = False
    ) -> None:
        self.files = files
        self.config = config
        self.progress = progress

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int | slice) -> Recording | Recordings:
        if isinstance(index, slice):
            return Recordings(self.files[index], self.config, progress=self.progress)
        return read_recording(self.files[index], self.config)

    def __iter__(self) -> Iterator[Recording]:
        with tqdm(self.files, unit="file", disable=not self.progress) as files:
            for file in files:
                yield read_recording(file, self.config)


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
        CheckpointError: a file cannot be written.
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
            except CheckpointError:
                raise
            except (ValueError, OSError) as error:
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
    """Whether a file of tokens is there, and of the model whose code books have that digest."""
    try:
        origin = read_tokens(path).origin
    except ClipError:
        return False
    return origin is not None and origin.books == books


def gathered(report: FolderReport) -> FolderReport:
    """The reports of all processes as one."""
    reports = objects_of_processes(report)
    return FolderReport(
        written=sum(report.written for report in reports),
        kept=sum(report.kept for report in reports),
        failures=tuple(sorted(line for report in reports for line in report.failures)),
    )
