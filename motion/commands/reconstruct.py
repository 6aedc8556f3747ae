"""``wanvae-motion reconstruct``: motion to tokens and back."""

from __future__ import annotations

import os
from dataclasses import dataclass

from jsonargparse import Namespace

from motion.checkpoints.formats import require_suffix
from motion.commands.options import (
    MOTION_HELP,
    add_layers_option,
    add_model_options,
    add_reading_options,
    load_model,
    read_reading,
)
from motion.evaluate.evaluation import count_indices
from motion.evaluate.movement import MovementSummary, measure_movement
from motion.evaluate.reconstruction import reconstruct
from motion.evaluate.report import describe_movement
from motion.features.recording import read_recording, suffixes_written
from motion.files.reading import GUESSED, Reading
from motion.metrics import mpjpe, rotation_error
from motion.model import RVQVAE
from motion.models import MotionModel
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command
from wanvae.engine.files import refuse_overwriting


def add_options(parser: Parser) -> None:
    parser.add_argument("input", help=MOTION_HELP)
    parser.add_argument("output", help="file to write, of the same kind")
    parser.reads("input")
    parser.writes("output")
    add_layers_option(parser)
    add_reading_options(parser)
    add_model_options(parser)


def run(arguments: Namespace) -> None:
    model = load_model(arguments)
    report = reconstruct_file(
        model,
        arguments.input,
        arguments.output,
        layers=arguments.layers,
        reading=read_reading(arguments),
    )
    rate = f"{report.fps:g} per second"
    if report.file_fps not in (None, report.fps):
        rate += f" (converted from {report.file_fps:g})"
    print(f"{arguments.input} -> {arguments.output}: {report.frames} frames at {rate}")
    print(f"MPJPE {report.mpjpe:.2f} mm, rotation error {report.rotation_error:.3f} degrees")
    for line in describe_movement(report.movement):
        print(line)
    if not report.used:
        print(f"{report.tokens} latents of {model.config.code_dim} numbers")
        return
    used = ", ".join(map(str, report.used))
    codes = model.config.quantizer.codebook_size
    print(f"{report.tokens} tokens; codes that they use of the {codes} of each layer: {used}")


@dataclass(frozen=True, kw_only=True)
class ReconstructionReport:
    """How close a reconstruction is.

    Attributes:
        frames: the number of frames, at the frame rate of the model.
        file_fps: frames per second of the original; None if they are not known.
        fps: frames per second of the model.
        mpjpe: mean distance of the joints from their original positions, in millimetres.
        rotation_error: mean angle between the rotations of the joints, in degrees.
        tokens: the number of tokens, or of latents. A token has one code of each layer.
        used: the number of codes of each layer that the tokens use; empty for a VAE.
        movement: how the reconstruction moves, beside the original.
    """

    frames: int
    file_fps: float | None
    fps: float
    mpjpe: float
    rotation_error: float
    tokens: int
    used: tuple[int, ...]
    movement: MovementSummary


def reconstruct_file(
    model: MotionModel,
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    layers: int | None = None,
    reading: Reading = GUESSED,
) -> ReconstructionReport:
    """Writes the reconstruction of a motion file, and compares it with the original.

    Args:
        layers: decode from the first so many layers of the quantizer; None is all.
        reading: what ``source`` does not tell.

    Raises:
        MotionError: ``source`` cannot be read, or does not have the features of the model.
        FileError: ``destination`` cannot be written, or is ``source``.
    """
    refuse_overwriting(destination, [source])
    require_suffix(destination, *suffixes_written(model.config))
    recording = read_recording(source, model.config, reading, model.skeleton)
    code, features = reconstruct(model, recording, layers)
    joints, original = recording.joints_of(features), recording.joints
    recording.write(destination, features)
    used = ()
    if isinstance(model, RVQVAE):
        used = tuple((count_indices(model, code) > 0).sum(1).tolist())
    return ReconstructionReport(
        frames=len(recording),
        file_fps=recording.file_fps,
        fps=model.config.fps,
        mpjpe=mpjpe(joints.positions, original.positions),
        rotation_error=rotation_error(joints.rotations, original.rotations),
        tokens=code.shape[1],
        used=used,
        movement=measure_movement(
            joints.positions, original.positions, recording.skeleton.names, model.config.fps
        ).summary,
    )


RECONSTRUCT = Command(
    run,
    add_options,
    "Tokenize and detokenize a motion file, and say how close the result is. If the features have "
    "no root, the root takes its path from the file.",
)
