"""``wanvae-motion tokenize``: a motion file, or a folder of motion files, to tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from jsonargparse import Namespace

from motion.commands.options import (
    MOTION_HELP,
    add_model_options,
    add_reading_options,
    add_retarget_option,
    load_tokenizer,
    print_ignored,
    read_model_reading,
    report_failures,
)
from motion.config import FeatureSpec
from motion.dataset.descriptions import SPEAKER
from motion.dataset.folder import FolderReport, write_folder
from motion.dataset.plan import CLIPS_PER_FILE, FolderOptions, plan_targets
from motion.dataset.records import TokenFormat, TokenRecord, TokenSettings
from motion.errors import MotionError
from motion.features.actors import warn_of_proportions
from motion.features.heading import find_headings
from motion.features.recording import Recording, read_recording
from motion.features.units import warn_of_units
from motion.files.reading import GUESSED, AsRead, Reading
from motion.latents import LatentOrigin
from motion.model import RVQVAE
from motion.models import MotionModel
from motion.skeleton.clip import MotionClip
from motion.tokens import (
    Actor,
    Origin,
    Tokens,
    digest_of,
    identify,
    write_tokens,
)
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command
from wanvae.engine.devices import device_of, launched_processes
from wanvae.engine.digest import stamp_of
from wanvae.engine.files import make_directory, refuse_overwriting
from wanvae.engine.finite import NotFiniteError
from wanvae.engine.locking import locked_by_run
from wanvae.engine.parquet import require_pyarrow
from wanvae.engine.signals import GO_ON
from wanvae.engine.text import writable

if TYPE_CHECKING:
    from accelerate import PartialState

# One file of tokens for each motion file.
NPZ = FolderOptions()


def add_options(parser: Parser) -> None:
    parser.add_argument("input", help=f"{MOTION_HELP}; or a folder of such files")
    parser.add_argument("output", help="file to write, .npz or .safetensors; or a folder")
    parser.reads("input")
    parser.writes("output")
    group = parser.add_argument_group("for a folder")
    group.add_argument(
        "--format",
        choices=list(get_args(TokenFormat)),
        default="npz",
        help="one file for each motion file: npz or safetensors; or one for many: tar, as "
        "webdataset reads it, or parquet",
    )
    group.add_argument(
        "--clips-per-file",
        type=int,
        default=CLIPS_PER_FILE,
        help="motion files in a tar or Parquet file",
    )
    group.add_argument(
        "--speaker",
        default=SPEAKER,
        help="regular expression with one group, which finds the speaker in the name of a file, "
        "like 'subject(\\d+)' (default: names of BEAT2, like 2_scott_0_1_1)",
    )
    add_reading_options(parser)
    add_retarget_option(parser)
    add_model_options(parser, packaged=True)


def run(arguments: Namespace) -> None:
    source, target, reading = arguments.input, arguments.output, read_model_reading(arguments)
    if not Path(source).is_dir():
        tokens = tokenize_file(load_tokenizer(arguments), source, target, reading)
        length, layers = tokens.indices.shape
        print(f"{source} -> {target}: {length} tokens of {layers} codes")
        return
    options = FolderOptions(
        format=arguments.format, clips_per_file=arguments.clips_per_file, speaker=arguments.speaker
    )
    with launched_processes(arguments.device) as processes:
        model = load_tokenizer(arguments, device_of(processes))
        try:
            report = tokenize_folder(
                model,
                source,
                target,
                processes,
                options=options,
                reading=reading,
                progress=arguments.progress,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(GO_ON) from None
        # One process prints, and fails, for all.
        if processes.is_main_process:
            print_report(report, f"{source} -> {target}")


def print_report(report: FolderReport, paths: str) -> None:
    """Prints what happened to the files of a folder.

    Raises:
        UserError: there are failures.
    """
    print(f"{paths}: {report.written} files of tokens written, {report.kept} were there")
    for line in describe_records(report.records):
        print(line)
    print_ignored(report.ignored)
    for note in report.notes:
        print(f"note: {note}")
    for file in report.changed:
        print(
            "tokenized again, because the file, the checkpoint, or how it is read has changed: "
            f"{file}"
        )
    if report.unknown:
        print(
            f"{report.unknown} files of tokens are of an earlier version, which does not "
            "tell whether the motion or the checkpoint has changed since; delete them to "
            "write them again"
        )
    report_failures(report.failures, report.written + report.kept)


def describe_records(records: Sequence[TokenRecord]) -> list[str]:
    """Returns a line about what describes the clips; none if nothing does."""
    counts = {
        "with captions": sum(bool(record.captions) for record in records),
        "with a speaker": sum(bool(record.speaker) for record in records),
        "with sound": sum(record.audio is not None for record in records),
        "with words": sum(bool(record.words) for record in records),
    }
    shown = [f"{count} {what}" for what, count in counts.items() if count]
    return [f"of {len(records)} clips {', '.join(shown)}"] if shown else []


def tokenize(model: RVQVAE, recording: Recording) -> Tokens:
    """Returns the tokens of a recording, with what is needed to restore the motion."""
    warn_of_recording(model, recording)
    config = model.config
    origin = Origin(
        frames=len(recording),
        fps=config.fps,
        codes=config.quantizer.codebook_size,
        books=digest_of(model),
        actor=make_actor(recording),
        read_as=recording.read_as,
    )
    return Tokens(model.encode(recording.features[None])[0].cpu(), origin)


def warn_of_recording(model: MotionModel, recording: Recording) -> None:
    """Warns of what makes tokens or latents of a recording worse than the model can."""
    warn_of_units(recording, model.normalizer, shown=False)
    warn_of_proportions(recording.matching, model.skeleton)


@contextmanager
def errors_of_file(path: Path) -> Iterator[None]:
    """Raises MotionError with the name of a motion file where the model overflows."""
    try:
        yield
    except NotFiniteError as error:
        raise MotionError(f"{path}: {error}") from error


def make_actor(recording: Recording) -> Actor | None:
    """Returns who moves in a recording; None for features of HumanML3D and KIT."""
    clip = recording.clip
    if clip is None:
        return None
    return Actor(
        skeleton=recording.file_skeleton,
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
    recording = read_recording(path, model.config, reading, model.skeleton)
    with errors_of_file(path):
        tokens = tokenize(model, recording)
    # ``tokenize`` sets an origin.
    assert tokens.origin is not None
    return replace(tokens, origin=replace(tokens.origin, model=identity, source=stamp))


def tokenize_folder(
    model: RVQVAE,
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    processes: PartialState,
    *,
    options: FolderOptions = NPZ,
    reading: Reading = GUESSED,
    progress: bool = False,
) -> FolderReport:
    """Writes the tokens of all motion files of a folder, with what describes them.

    One file for each motion file is in the same tree. ``index.jsonl`` lists all clips, with
    captions, speakers, sound and words; ``motion.TokenDataset`` reads it. Tokens of this model and
    of an unchanged motion file are kept, so an interrupted run goes on. Of motion files that would
    have the same name, the first is taken, and the others are failures.

    Args:
        processes: the processes of the run. They all call this function and share the files.
        options: how the tokens are stored.
        reading: what the motion files do not tell.
        progress: show a progress bar.

    Returns:
        What happened to all files, in every process.

    Raises:
        MotionError: there are no motion files.
        UserError: one folder is inside the other, ``destination`` holds tokens of another format,
            another job works there, a table of metadata is damaged, or pyarrow is missing.
        FileError: a file cannot be written.
    """
    config, digest, identity = model.config, digest_of(model), identify(model)
    plan = plan_targets(Path(source), Path(destination), options, config)
    if options.format == "parquet":
        require_pyarrow()
    settings = TokenSettings(
        format=options.format,
        codebook_sizes=(config.quantizer.codebook_size,) * config.quantizer.num_quantizers,
        fps=config.fps,
        factor=config.factor,
        first_frames=config.first_frames,
        model=identity,
        source=writable(os.path.abspath(source)),
    )
    make_directory(destination)
    with locked_by_run(Path(destination)):
        return write_folder(
            plan,
            settings,
            lambda file: read_tokenized(model, identity, file, reading),
            lambda origin, file: is_up_to_date(origin, digest, identity, file, reading),
            processes,
            speaker=options.speaker,
            progress=progress,
        )


def is_up_to_date(origin: Origin, digest: str, identity: str, file: Path, reading: Reading) -> bool:
    """Whether tokens are of a model and of a motion file as they are now, as far as they tell.

    Args:
        digest, identity: what ``digest_of`` and ``identify`` return for the model.
        reading: how the file is read now.
    """
    same_model = origin.model == identity if origin.model else origin.books == digest
    same_file = origin.source is None or origin.source.matches(stamp_of(file))
    return same_model and same_file and is_read_as(origin, reading)


def is_read_as(origin: Origin | LatentOrigin, reading: Reading) -> bool:
    """Whether a motion file was read as ``reading`` says, as far as tokens or latents tell."""
    read_as, actor = origin.read_as, origin.actor
    if read_as is None and actor is not None:
        read_as = AsRead.of(actor.skeleton)  # as in files of earlier versions
    return read_as is None or read_as.fits(reading)


TOKENIZE = Command(
    run,
    add_options,
    "Write the tokens of a motion file. For a folder, write the tokens of all its motion files to "
    "the same tree in another folder; files that cannot be read are named and left out. Run it "
    "again to go on after an interruption: complete files of tokens of this checkpoint are kept, "
    "except where the motion file has changed. "
    "Several processes (accelerate launch -m motion tokenize ...) share a folder.",
)
