"""``wanvae-motion encode``: a motion file, or a folder of them, to the latents of a VAE."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from motion.commands.options import (
    MOTION_HELP,
    add_model_options,
    add_reading_options,
    load_vae,
    print_ignored,
    read_reading,
    report_failures,
)
from motion.commands.tokenize import errors_of_file, fits, make_actor, warn_of_recording
from motion.dataset.plan import FolderOptions, plan_targets
from motion.errors import MotionError
from motion.features.recording import MotionFiles, read_recording
from motion.files.reading import GUESSED, Reading
from motion.latents import LatentOrigin, Latents, read_latents, write_latents
from motion.tokens import identify
from motion.vae import MotionVAE
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command
from wanvae.engine.digest import stamp_of
from wanvae.engine.files import make_directory, refuse_overwriting
from wanvae.engine.locking import locked_by_run
from wanvae.errors import UserError
from wanvae.posterior import Posterior

# One file of latents for each motion file.
SAFETENSORS = FolderOptions(format="safetensors")


def add_options(parser: Parser) -> None:
    parser.add_argument("input", help=f"{MOTION_HELP}; or a folder of such files")
    parser.add_argument("output", help="file to write, .safetensors; or a folder")
    parser.reads("input")
    parser.writes("output")
    add_reading_options(parser)
    add_model_options(parser)


def run(arguments: Namespace) -> None:
    model, reading = load_vae(arguments), read_reading(arguments)
    source, target = Path(arguments.input), Path(arguments.output)
    identity = identify(model)
    if not source.is_dir():
        refuse_overwriting(target, [source])
        latents = read_encoded(model, identity, source, reading)
        write_latents(target, latents)
        length, channels = latents.posterior.mean.shape
        print(f"{source} -> {target}: {length} latents of {channels} numbers")
        return
    plan = plan_targets(source, target, SAFETENSORS, model.config)
    make_directory(target)
    written, kept, failures = 0, 0, list(plan.failures)
    with locked_by_run(target):
        for path, (file,) in plan.targets.items():
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
    print(f"{source} -> {target}: {written} files of latents written, {kept} were there")
    print_ignored(MotionFiles([], list(plan.others)).ignored)
    report_failures(failures, written + kept)


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
    told = origin.actor is None or fits(origin.actor, reading)
    return told and origin.source.matches(stamp_of(file))


ENCODE = Command(
    run,
    add_options,
    "Write the continuous latents of a motion file: mean and log-variance of a VAE. For a folder, "
    "write the latents of all its motion files to the same tree in another folder; files that "
    "cannot be read are named and left out, and complete files of latents of this checkpoint are "
    "kept. A tokenizer has no such latents: use tokenize.",
)
