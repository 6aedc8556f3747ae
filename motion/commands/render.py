"""``wanvae-motion render``: motion as a stick figure."""

from __future__ import annotations

import os
from pathlib import Path

from jsonargparse import Namespace

from motion.checkpoints.formats import require_suffix
from motion.commands.options import (
    MOTION_HELP,
    add_model_options,
    add_reading_options,
    add_retarget_option,
    load_model,
    read_model_reading,
)
from motion.evaluate.reconstruction import make_figure, reconstruct
from motion.features.feature_files import read_features
from motion.features.joint_motion import read_joint_motion
from motion.features.recording import read_recording
from motion.features.units import warn_of_drawn_units
from motion.files.arrays import load_array
from motion.files.formats import read_motion
from motion.files.reading import GUESSED, Reading
from motion.models import MotionModel
from motion.render import FIGURE_SUFFIXES, Figure, render
from wanvae.engine.command_line.arguments import Parser
from wanvae.engine.command_line.program import Command
from wanvae.engine.files import refuse_overwriting


def add_options(parser: Parser) -> None:
    parser.add_argument("input", help=f"{MOTION_HELP}; or .npy of joints (T, 22, 3)")
    parser.add_argument("output", help="file to write: .mp4, .mov, .mkv; .png, .jpg, .webp")
    parser.reads("input")
    parser.writes("output")
    add_reading_options(parser)
    add_retarget_option(parser)
    add_model_options(parser, required=False)


def run(arguments: Namespace) -> None:
    model = None if arguments.checkpoint is None else load_model(arguments)
    render_file(
        arguments.input,
        arguments.output,
        model,
        reading=read_model_reading(arguments),
        progress=arguments.progress,
    )
    print(f"{arguments.input} -> {arguments.output}")


def render_file(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    model: MotionModel | None = None,
    *,
    reading: Reading = GUESSED,
    progress: bool = False,
) -> None:
    """Draws a motion file as a stick figure, with ``model`` beside its reconstruction.

    Args:
        destination: a video (.mp4, .mov, .mkv), or a picture of some frames (.png, .jpg, .webp).
        reading: what ``source`` does not tell.
        progress: show a progress bar.

    Raises:
        MotionError: ``source`` cannot be read, or does not have the features of the model.
        FileError, VideoError: ``destination`` cannot be written, or is ``source``.
    """
    refuse_overwriting(destination, [source])
    require_suffix(destination, *FIGURE_SUFFIXES)
    if model is None:
        figure, fps = read_figure(source, reading)
        figures = [figure]
    else:
        recording = read_recording(source, model.config, reading, model.skeleton)
        fps = model.config.fps
        _, decoded = reconstruct(model, recording)
        figures = [make_figure(recording, features) for features in (recording.features, decoded)]
    render(destination, figures, fps, progress=progress)


def read_figure(path: str | os.PathLike[str], reading: Reading = GUESSED) -> tuple[Figure, float]:
    """Reads the stick figure of a motion file of any kind, and its frames per second."""
    if Path(path).suffix.lower() != ".npy":
        clip = read_motion(path, reading)
        return Figure.of_clip(clip), clip.fps
    if load_array(Path(path)).ndim == 2:
        warn_of_drawn_units(read_features(path))
    found = read_joint_motion(path, reading)
    return Figure.of_joints(found.positions, found.clip.skeleton), found.clip.fps


RENDER = Command(
    run,
    add_options,
    "Draw a motion file as a stick figure: as a video, or as a picture of some frames. With a "
    "checkpoint, its reconstruction is beside it.",
)
