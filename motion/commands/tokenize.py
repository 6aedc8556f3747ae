"""``wanvae-motion tokenize``: a motion file, or a folder of motion files, to tokens."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from motion.commands.options import MOTION_HELP, add_model_options, load_model, report_failures
from motion.config import RVQVAEConfig
from motion.errors import MotionError
from motion.features.recording import Recording, find_files, read_recording
from motion.features.units import warn_of_units
from motion.model import RVQVAE
from motion.tokens import Actor, Origin, Tokens, digest_of, read_tokens, write_tokens
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command
from wanvae.engine.devices import device_of, launched_processes
from wanvae.engine.files import make_directory
from wanvae.engine.output_folder import refuse_nested
from wanvae.engine.processes import gather_objects
from wanvae.engine.sharing import share_files
from wanvae.errors import UserError

if TYPE_CHECKING:
    from accelerate import PartialState

TOKEN_FORMATS = ("npz", "safetensors")


def add_options(parser: Parser) -> None:
    parser.add_argument("input", help=f"{MOTION_HELP}; or a folder of such files")
    parser.add_argument("output", help="file to write, .npz or .safetensors; or a folder")
    parser.add_argument(
        "--format",
        choices=list(TOKEN_FORMATS),
        default="npz",
        help="format of the files of a folder",
    )
    add_model_options(parser)


def run(arguments: Namespace) -> None:
    source, target = arguments.input, arguments.output
    if not Path(source).is_dir():
        tokens = tokenize_file(load_model(arguments), source, target)
        length, layers = tokens.indices.shape
        print(f"{source} -> {target}: {length} tokens of {layers} codes")
        return
    with launched_processes(arguments.device) as processes:
        model = load_model(arguments, device_of(processes))
        suffix = f".{arguments.format}"
        try:
            report = tokenize_folder(
                model, source, target, suffix, processes, progress=arguments.progress
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "files that were written are complete; run it again to go on from there"
            ) from None
        # One process prints, and fails, for all.
        if processes.is_main_process:
            counts = f"{report.written} files of tokens written, {report.kept} were there"
            print(f"{source} -> {target}: {counts}")
            report_failures(report.failures, report.written + report.kept)


def tokenize(model: RVQVAE, recording: Recording) -> Tokens:
    """Returns the tokens of a recording, with what is needed to restore the motion."""
    warn_of_units(recording, model.normalizer)
    clip, config = recording.clip, model.config
    actor = None
    if clip is not None:
        actor = Actor(
            skeleton=clip.skeleton,
            start=clip.start,
            betas=clip.betas,
            gender=clip.gender,
        )
    origin = Origin(
        frames=len(recording),
        fps=config.fps,
        codes=config.quantizer.codebook_size,
        books=digest_of(model),
        actor=actor,
    )
    return Tokens(model.encode(recording.features[None])[0].cpu(), origin)


def tokenize_file(
    model: RVQVAE, source: str | os.PathLike[str], destination: str | os.PathLike[str]
) -> Tokens:
    """Writes the tokens of a motion file.

    Raises:
        MotionError: ``source`` cannot be read, or does not have the features of the model.
        FileError: ``destination`` cannot be written.
    """
    tokens = tokenize(model, read_recording(source, model.config))
    write_tokens(destination, tokens)
    return tokens


@dataclass(frozen=True)
class FolderReport:
    """What happened to the files of a folder.

    Attributes:
        written: the number of files of tokens that were written.
        kept: the number of files of tokens that were there already.
        failures: a line for each motion file that cannot be read, sorted.
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
    """Writes the tokens of all motion files of a folder to the same tree in another folder.

    Complete files of tokens of this model are kept, so an interrupted run goes on.

    Args:
        suffix: of the files to write, .npz or .safetensors.
        processes: the processes of the run. They all call this function and share the files.
        progress: show a progress bar.

    Returns:
        What happened to all files, in every process.

    Raises:
        MotionError: there are no motion files, or two of them have the same file of tokens.
        UserError: one folder is inside the other.
        FileError: a file cannot be written.
    """
    targets = plan_targets(Path(source), Path(destination), suffix, model.config)
    make_directory(destination)
    digest = digest_of(model)
    written, kept, failures = 0, 0, []
    for target, file in share_files(list(targets.items()), processes, progress=progress):
        if is_complete(target, digest):
            kept += 1
            continue
        try:
            tokens = tokenize(model, read_recording(file, model.config))
        except (UserError, OSError) as error:
            failures.append(str(error))
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        write_tokens(target, tokens)
        written += 1
    return gather_reports(FolderReport(written, kept, tuple(failures)))


def plan_targets(
    source: Path, destination: Path, suffix: str, config: RVQVAEConfig
) -> dict[Path, Path]:
    """Returns the motion file of each file of tokens to write."""
    refuse_nested(source, destination)
    targets: dict[Path, Path] = {}
    for file in find_files(source, config):
        target = (destination / file.relative_to(source)).with_suffix(suffix)
        if target in targets:
            raise MotionError(
                f"{targets[target]} and {file} would both become {target}; rename one"
            )
        targets[target] = file
    return targets


def is_complete(path: Path, digest: str) -> bool:
    """Whether ``path`` is a complete file of tokens of the model with this codebook digest."""
    try:
        origin = read_tokens(path).origin
    except MotionError:
        return False
    return origin is not None and origin.books == digest


def gather_reports(report: FolderReport) -> FolderReport:
    """Returns the sum of the reports of all processes."""
    reports = gather_objects(report)
    return FolderReport(
        written=sum(report.written for report in reports),
        kept=sum(report.kept for report in reports),
        failures=tuple(sorted(line for report in reports for line in report.failures)),
    )


TOKENIZE = Command(
    run,
    add_options,
    "motion to tokens",
    "Write the tokens of a motion file. For a folder, write the tokens of all its motion files to "
    "the same tree in another folder; files that cannot be read are named and left out. Run it "
    "again to go on after an interruption: complete files of tokens of this checkpoint are kept. "
    "Several processes (accelerate launch -m motion tokenize ...) share a folder.",
)
