"""``wanvae-motion reconstruct``: motion to tokens and back."""

from __future__ import annotations

import os
from dataclasses import dataclass

from jsonargparse import Namespace
from torch import Tensor

from motion.commands.options import (
    MOTION_HELP,
    WRITTEN_HELP,
    add_layers_option,
    add_model_options,
    add_reading_options,
    add_retarget_option,
    load_model,
    print_loss,
    read_model_reading,
)
from motion.evaluate.evaluation import count_indices
from motion.evaluate.movement import MovementSummary, measure_movement
from motion.evaluate.reconstruction import reconstruct
from motion.evaluate.report import describe_movement
from motion.features.recording import Recording, check_output, read_recording
from motion.files.reading import GUESSED, Reading
from motion.metrics import feature_errors, mpjpe, rotation_error
from motion.model import RVQVAE
from motion.models import MotionModel
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command
from wanvae.engine.files import refuse_overwriting

FEATURE_SPACE = "in the space of the features, because what they are is not known"


def add_options(parser: Parser) -> None:
    parser.add_argument("input", help=MOTION_HELP)
    parser.add_argument("output", help=f"file to write: {WRITTEN_HELP}")
    parser.reads("input")
    parser.writes("output")
    add_layers_option(parser)
    add_reading_options(parser)
    add_retarget_option(parser)
    add_model_options(parser, packaged=True)


def run(arguments: Namespace) -> None:
    model = load_model(arguments)
    report = reconstruct_file(
        model,
        arguments.input,
        arguments.output,
        layers=arguments.layers,
        reading=read_model_reading(arguments),
    )
    rate = f"{report.fps:g} per second"
    if report.file_fps not in (None, report.fps):
        rate += f" (converted from {report.file_fps:g})"
    print(f"{arguments.input} -> {arguments.output}: {report.frames} frames at {rate}")
    if report.joints is None:
        print(f"{FEATURE_SPACE}: mean error {report.feature_error:.4f} standard deviations")
    else:
        mpjpe, angle = report.joints.mpjpe, report.joints.rotation_error
        print(f"MPJPE {mpjpe:.2f} mm, rotation error {angle:.3f} degrees")
        for line in describe_movement(report.joints.movement):
            print(line)
    if not report.used:
        print(f"{report.tokens} latents of {model.config.code_dim} numbers")
        return
    used = ", ".join(map(str, report.used))
    codes = model.config.quantizer.codebook_size
    print(f"{report.tokens} tokens; codes that they use of the {codes} of each layer: {used}")
    print_loss(report.loss)


@dataclass(frozen=True, kw_only=True)
class JointErrors:
    """How close the joints of a reconstruction are.

    Attributes:
        mpjpe: mean distance of the joints from their original positions, in millimetres.
        rotation_error: mean angle between the rotations of the joints, in degrees.
        movement: how the reconstruction moves, beside the original.
    """

    mpjpe: float
    rotation_error: float
    movement: MovementSummary


@dataclass(frozen=True, kw_only=True)
class ReconstructionReport:
    """How close a reconstruction is.

    Attributes:
        frames: the number of frames, at the frame rate of the model.
        file_fps: frames per second of the original; None if they are not known.
        fps: frames per second of the model.
        joints: how close the joints are; None if what the features are is not known.
        feature_error: mean error of the features, in standard deviations of their channels.
        tokens: the number of tokens, or of latents. A token has one code of each layer.
        used: the number of codes of each layer that the tokens use; empty for a VAE.
        loss: a sentence on what the written file does not hold of the features; or empty.
    """

    frames: int
    file_fps: float | None
    fps: float
    joints: JointErrors | None
    feature_error: float
    tokens: int
    used: tuple[int, ...]
    loss: str = ""


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
    check_output(destination, model.config)
    recording = read_recording(source, model.config, reading, model.skeleton)
    code, features = reconstruct(model, recording, layers)
    recording.write(destination, features)
    std = model.normalizer.std.cpu()
    used = ()
    if isinstance(model, RVQVAE):
        used = tuple((count_indices(model, code) > 0).sum(1).tolist())
    return ReconstructionReport(
        frames=len(recording),
        file_fps=recording.file_fps,
        fps=model.config.fps,
        joints=None if recording.skeleton is None else compare_joints(recording, features),
        feature_error=feature_errors(features, recording.features, std).mean().item(),
        tokens=code.shape[1],
        used=used,
        loss=recording.describe_loss(destination, features),
    )


def compare_joints(recording: Recording, features: Tensor) -> JointErrors:
    """Compares the joints of ``features`` ``(T, D)`` with the joints of a recording."""
    joints, original = recording.joints_of(features), recording.joints
    moved = measure_movement(
        joints.positions, original.positions, recording.bones.names, recording.config.fps
    )
    return JointErrors(
        mpjpe=mpjpe(joints.positions, original.positions),
        rotation_error=rotation_error(joints.rotations, original.rotations),
        movement=moved.summary,
    )


RECONSTRUCT = Command(
    run,
    add_options,
    "Tokenize and detokenize a motion file, and say how close the result is. If the features have "
    "no root, the root takes its path from the file.",
)
