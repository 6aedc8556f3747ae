"""``wanvae-motion encode``: a motion file, or a folder of them, to the latents of a VAE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from motion.commands.options import (
    MOTION_HELP,
    add_model_options,
    add_reading_options,
    add_retarget_option,
    load_vae,
    print_ignored,
    read_model_reading,
    report_failures,
)
from motion.commands.tokenize import errors_of_file, is_read_as, make_actor, warn_of_recording
from motion.dataset.plan import FolderOptions, plan_targets
from motion.errors import MotionError
from motion.features.recording import MotionFiles, read_recording
from motion.files.reading import GUESSED, Reading
from motion.latents import LatentOrigin, Latents, read_latents, write_latents
from motion.tokens import identify
from motion.vae import MotionVAE
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command
from wanvae.engine.devices import device_of, launched_processes
from wanvae.engine.digest import stamp_of
from wanvae.engine.files import make_directory, refuse_overwriting
from wanvae.engine.locking import locked_by_run
from wanvae.engine.processes import gather_objects
from wanvae.engine.sharing import share_files
from wanvae.engine.signals import GO_ON
from wanvae.errors import UserError
from wanvae.posterior import Posterior

if TYPE_CHECKING:
    from accelerate import PartialState

# One file of latents for each motion file.
SAFETENSORS = FolderOptions(format="safetensors")


def add_options(parser: Parser) -> None:
    parser.add_argument("input", help=f"{MOTION_HELP}; or a folder of such files")
    parser.add_argument("output", help="file to write, .safetensors; or a folder")
    parser.reads("input")
    parser.writes("output")
    add_reading_options(parser)
    add_retarget_option(parser)
    add_model_options(parser)


def run(arguments: Namespace) -> None:
    source, target = Path(arguments.input), Path(arguments.output)
    reading = read_model_reading(arguments)
    if not source.is_dir():
        model = load_vae(arguments)
        refuse_overwriting(target, [source])
        latents = read_encoded(model, identify(model), source, reading)
        write_latents(target, latents)
        length, channels = latents.posterior.mean.shape
        print(f"{source} -> {target}: {length} latents of {channels} numbers")
        return
    with launched_processes(arguments.device) as processes:
        model = load_vae(arguments, device_of(processes))
        try:
            report = encode_folder(
                model, source, target, processes, reading=reading, progress=arguments.progress
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(GO_ON) from None
        # One process prints, and fails, for all.
        if processes.is_main_process:
            print(
                f"{source} -> {target}: {report.written} files of latents written, {report.kept} "
                "were there"
            )
            print_ignored(report.ignored)
            report_failures(report.failures, report.written + report.kept)


@dataclass(frozen=True)
class LatentReport:
    """What happened to the files of a folder.

    Attributes:
        written: the number of motion files whose latents were written.
        kept: the number of motion files whose latents were there already.
        failures: a line for each motion file that cannot be read, sorted.
        ignored: how many files of the folder are no motion files, by suffix; or empty.
    """

    written: int
    kept: int
    failures: tuple[str, ...]
    ignored: str = ""


def encode_folder(
    model: MotionVAE,
    source: Path,
    destination: Path,
    processes: PartialState,
    *,
    reading: Reading = GUESSED,
    progress: bool = False,
) -> LatentReport:
    """Writes the latents of all motion files of a folder to the same tree in another folder.

    Latents of this model and of an unchanged motion file are kept, so an interrupted run goes on.

    Args:
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
    identity = identify(model)
    plan = plan_targets(source, destination, SAFETENSORS, model.config)
    make_directory(destination)
    written, kept, failures = 0, 0, []
    with locked_by_run(destination):
        for path, (file,) in share_files(list(plan.targets.items()), processes, progress=progress):
            if is_up_to_date(path, identity, file, reading):
                kept += 1
                continue
            try:
                latents = read_encoded(model, identity, file, reading)
            except (UserError, OSError) as error:
                failures.append(str(error))
                # Latents of another state of the file would be taken for the latents of this one.
                path.unlink(missing_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            write_latents(path, latents)
            written += 1
        reports = gather_objects((written, kept, failures))
    lines = [*plan.failures, *(line for _, _, own in reports for line in own)]
    return LatentReport(
        written=sum(report[0] for report in reports),
        kept=sum(report[1] for report in reports),
        failures=tuple(sorted(lines)),
        ignored=MotionFiles([], list(plan.others)).ignored,
    )


def read_encoded(
    model: MotionVAE, identity: str, path: Path, reading: Reading = GUESSED
) -> Latents:
    """Returns the latents of a motion file, with what is needed to restore the motion.

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
    warn_of_recording(model, recording)
    with errors_of_file(path):
        posterior = model.encode(recording.features[None])
    origin = LatentOrigin(
        frames=len(recording),
        fps=model.config.fps,
        model=identity,
        actor=make_actor(recording),
        source=stamp,
        read_as=recording.read_as,
    )
    return Latents(Posterior(posterior.mean[0].cpu(), posterior.logvar[0].cpu()), origin)


def is_up_to_date(target: Path, identity: str, file: Path, reading: Reading) -> bool:
    """Whether a file holds the latents of a model and of a motion file as they are now."""
    try:
        origin = read_latents(target).origin
    except MotionError:
        return False
    if origin is None or origin.source is None or origin.model != identity:
        return False
    return is_read_as(origin, reading) and origin.source.matches(stamp_of(file))


ENCODE = Command(
    run,
    add_options,
    "Write the continuous latents of a motion file: mean and log-variance of a VAE. For a folder, "
    "write the latents of all its motion files to the same tree in another folder; files that "
    "cannot be read are named and left out, and complete files of latents of this checkpoint are "
    "kept. Several processes (accelerate launch -m motion encode ...) share a folder. A tokenizer "
    "has no such latents: use tokenize.",
)
