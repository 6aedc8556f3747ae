"""``wanvae-motion tokenize``: a motion file, or a folder of motion files, to tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from motion.commands.options import (
    MOTION_HELP,
    add_model_options,
    add_reading_options,
    load_tokenizer,
    print_ignored,
    read_reading,
    report_failures,
)
from motion.config import FeatureSpec, RVQVAEConfig
from motion.errors import MotionError
from motion.features.heading import find_headings
from motion.features.recording import Recording, find_files, read_recording
from motion.features.units import warn_of_units
from motion.files.reading import GUESSED, Reading
from motion.model import RVQVAE
from motion.skeleton.clip import MotionClip
from motion.tokens import (
    Actor,
    Origin,
    Tokens,
    digest_of,
    identify,
    read_tokens,
    write_tokens,
)
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command
from wanvae.engine.devices import device_of, launched_processes
from wanvae.engine.digest import stamp_of
from wanvae.engine.files import make_directory, refuse_overwriting
from wanvae.engine.finite import NotFiniteError
from wanvae.engine.locking import locked_by_run
from wanvae.engine.output_folder import refuse_nested
from wanvae.engine.processes import gather_objects
from wanvae.engine.sharing import share_files
from wanvae.engine.signals import GO_ON
from wanvae.engine.text import writable
from wanvae.errors import UserError

if TYPE_CHECKING:
    from accelerate import PartialState

TOKEN_FORMATS = ("npz", "safetensors")


def add_options(parser: Parser) -> None:
    parser.add_argument("input", help=f"{MOTION_HELP}; or a folder of such files")
    parser.add_argument("output", help="file to write, .npz or .safetensors; or a folder")
    parser.reads("input")
    parser.writes("output")
    parser.add_argument(
        "--format",
        choices=list(TOKEN_FORMATS),
        default="npz",
        help="format of the files of a folder",
    )
    add_reading_options(parser)
    add_model_options(parser)


def run(arguments: Namespace) -> None:
    source, target, reading = arguments.input, arguments.output, read_reading(arguments)
    if not Path(source).is_dir():
        tokens = tokenize_file(load_tokenizer(arguments), source, target, reading)
        length, layers = tokens.indices.shape
        print(f"{source} -> {target}: {length} tokens of {layers} codes")
        return
    with launched_processes(arguments.device) as processes:
        model = load_tokenizer(arguments, device_of(processes))
        suffix = f".{arguments.format}"
        try:
            report = tokenize_folder(
                model,
                source,
                target,
                suffix,
                processes,
                reading=reading,
                progress=arguments.progress,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(GO_ON) from None
        # One process prints, and fails, for all.
        if processes.is_main_process:
            counts = f"{report.written} files of tokens written, {report.kept} were there"
            print(f"{source} -> {target}: {counts}")
            print_ignored(report.ignored)
            for file in report.changed:
                print(f"tokenized again, because the file or the checkpoint has changed: {file}")
            if report.unknown:
                print(
                    f"{report.unknown} files of tokens are of an earlier version, which does not "
                    "tell whether the motion or the checkpoint has changed since; delete them to "
                    "write them again"
                )
            report_failures(report.failures, report.written + report.kept)


def tokenize(model: RVQVAE, recording: Recording) -> Tokens:
    """Returns the tokens of a recording, with what is needed to restore the motion."""
    warn_of_units(recording, model.normalizer, shown=False)
    config = model.config
    origin = Origin(
        frames=len(recording),
        fps=config.fps,
        codes=config.quantizer.codebook_size,
        books=digest_of(model),
        actor=make_actor(recording),
    )
    return Tokens(model.encode(recording.features[None])[0].cpu(), origin)


def make_actor(recording: Recording) -> Actor | None:
    """Returns who moves in a recording; None for features of HumanML3D and KIT."""
    clip = recording.clip
    if clip is None:
        return None
    return Actor(
        skeleton=clip.skeleton,
        start=clip.start,
        betas=clip.betas,
        gender=clip.gender,
        heading=find_start_heading(clip, recording.config.features),
    )


def find_start_heading(clip: MotionClip, spec: FeatureSpec | None) -> float:
    """Returns the heading in the first frame, radians; 0 if the features do not need it."""
    if spec is None or not spec.relative:
        return 0.0
    return find_headings(clip.rotations[0, 0]).item()


def tokenize_file(
    model: RVQVAE,
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    reading: Reading = GUESSED,
) -> Tokens:
    """Writes the tokens of a motion file.

    Args:
        reading: what ``source`` does not tell.

    Raises:
        MotionError: ``source`` cannot be read, or does not have the features of the model.
        FileError: ``destination`` cannot be written, or is ``source``.
    """
    refuse_overwriting(destination, [source])
    tokens = read_tokenized(model, identify(model), Path(source), reading)
    write_tokens(destination, tokens)
    return tokens


def read_tokenized(model: RVQVAE, identity: str, path: Path, reading: Reading) -> Tokens:
    """Returns the tokens of a motion file. They tell the state of the file and of the model.

    Args:
        identity: what ``identify`` returns for the model.
        reading: what the file does not tell.

    Raises:
        MotionError: the file cannot be read or does not have the features of the model, or the
            model overflows.
        OSError: there is no such file.
    """
    stamp = stamp_of(path) if path.exists() else None
    recording = read_recording(path, model.config, reading)
    try:
        tokens = tokenize(model, recording)
    except NotFiniteError as error:
        raise MotionError(f"{path}: {error}") from error
    # ``tokenize`` sets an origin.
    assert tokens.origin is not None
    return replace(tokens, origin=replace(tokens.origin, model=identity, source=stamp))


@dataclass(frozen=True)
class FolderReport:
    """What happened to the files of a folder.

    Attributes:
        written: the number of files of tokens that were written.
        kept: the number of files of tokens that were there already.
        failures: a line for each motion file that cannot be read, sorted.
        changed: motion files whose tokens were there, but of another state of the file or of
            another model, sorted.
        unknown: the number of kept files of tokens that do not tell these states.
        ignored: how many files of the folder are no motion files, by suffix; or empty.
    """

    written: int
    kept: int
    failures: tuple[str, ...]
    changed: tuple[str, ...] = ()
    unknown: int = 0
    ignored: str = ""


def tokenize_folder(
    model: RVQVAE,
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    suffix: str,
    processes: PartialState,
    *,
    reading: Reading = GUESSED,
    progress: bool = False,
) -> FolderReport:
    """Writes the tokens of all motion files of a folder to the same tree in another folder.

    Complete files of tokens of this model and of an unchanged motion file are kept, so an
    interrupted run goes on. Of motion files that would have the same file of tokens, the first is
    taken, and the others are failures.

    Args:
        suffix: of the files to write, .npz or .safetensors.
        processes: the processes of the run. They all call this function and share the files.
        reading: what the motion files do not tell.
        progress: show a progress bar.

    Returns:
        What happened to all files, in every process.

    Raises:
        MotionError: there are no motion files.
        UserError: one folder is inside the other, or another job works in ``destination``.
        FileError: a file cannot be written.
    """
    plan = plan_targets(Path(source), Path(destination), suffix, model.config)
    make_directory(destination)
    with locked_by_run(Path(destination)):
        return write_targets(model, plan, processes, reading, progress=progress)


def write_targets(
    model: RVQVAE,
    plan: FolderPlan,
    processes: PartialState,
    reading: Reading,
    *,
    progress: bool,
) -> FolderReport:
    """Writes the tokens of motion files, as ``tokenize_folder`` says."""
    digest, identity = digest_of(model), identify(model)
    written, kept, unknown = 0, 0, 0
    failures = list(plan.failures) if processes.is_main_process else []
    changed: list[str] = []
    for target, file in share_files(list(plan.targets.items()), processes, progress=progress):
        origin = find_origin(target)
        if origin is not None:
            if is_up_to_date(origin, digest, identity, file, reading):
                kept += 1
                unknown += origin.source is None
                continue
            changed.append(writable(str(file)))
        try:
            tokens = read_tokenized(model, identity, file, reading)
        except (UserError, OSError) as error:
            failures.append(str(error))
            # Tokens of another state of the file would be taken for the tokens of this one.
            if origin is not None:
                target.unlink()
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        write_tokens(target, tokens)
        written += 1
    own = FolderReport(written, kept, tuple(failures), tuple(changed), unknown, plan.ignored)
    return gather_reports(own)


@dataclass(frozen=True)
class FolderPlan:
    """The files of tokens of a folder, the same in all processes.

    Attributes:
        targets: the motion file of each file of tokens to write.
        failures: a line for each motion file whose tokens would be in a file of another one.
        ignored: how many files of the folder are no motion files, by suffix; or empty.
    """

    targets: Mapping[Path, Path]
    failures: Sequence[str]
    ignored: str


def plan_targets(source: Path, destination: Path, suffix: str, config: RVQVAEConfig) -> FolderPlan:
    """Plans the files of tokens of a folder.

    Raises:
        MotionError: there are no motion files.
        UserError: one folder is inside the other.
    """
    refuse_nested(source, destination)
    targets: dict[Path, Path] = {}
    same = []
    found = find_files(source, config)
    for file in found.paths:
        target = (destination / file.relative_to(source)).with_suffix(suffix)
        if target in targets:
            same.append(f"{file} would become {target}, as {targets[target]} does; rename one")
        else:
            targets[target] = file
    return FolderPlan(targets, same, found.ignored)


def find_origin(path: Path) -> Origin | None:
    """Returns where the tokens of a file come from; None if it is no complete file of tokens."""
    try:
        return read_tokens(path).origin
    except MotionError:
        return None


def is_up_to_date(origin: Origin, digest: str, identity: str, file: Path, reading: Reading) -> bool:
    """Whether tokens are of a model and of a motion file as they are now, as far as they tell.

    Args:
        digest, identity: what ``digest_of`` and ``identify`` return for the model.
        reading: how the file is read now.
    """
    same_model = origin.model == identity if origin.model else origin.books == digest
    same_file = origin.source is None or origin.source.matches(stamp_of(file))
    return same_model and same_file and (origin.actor is None or fits(origin.actor, reading))


def fits(actor: Actor, reading: Reading) -> bool:
    """Whether the skeleton of an actor is as ``reading`` says."""
    skeleton = actor.skeleton
    return (
        reading.unit in (None, skeleton.unit)
        and reading.up in (None, skeleton.up)
        and reading.root in (None, skeleton.names[0])
    )


def gather_reports(report: FolderReport) -> FolderReport:
    """Returns the sum of the reports of all processes."""
    reports = gather_objects(report)
    return FolderReport(
        written=sum(report.written for report in reports),
        kept=sum(report.kept for report in reports),
        failures=tuple(sorted(line for report in reports for line in report.failures)),
        changed=tuple(sorted(file for report in reports for file in report.changed)),
        unknown=sum(report.unknown for report in reports),
        ignored=report.ignored,
    )


TOKENIZE = Command(
    run,
    add_options,
    "Write the tokens of a motion file. For a folder, write the tokens of all its motion files to "
    "the same tree in another folder; files that cannot be read are named and left out. Run it "
    "again to go on after an interruption: complete files of tokens of this checkpoint are kept, "
    "except where the motion file has changed. "
    "Several processes (accelerate launch -m motion tokenize ...) share a folder.",
)
