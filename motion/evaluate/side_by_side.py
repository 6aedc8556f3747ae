"""A section of a page: a motion beside its reconstruction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from motion.evaluate.folder import FileEvaluation
from motion.evaluate.movement import speeds_on_ground
from motion.evaluate.reconstruction import make_figure, reconstruct
from motion.features.recording import Recording, read_recording
from motion.files.reading import Reading
from motion.metrics import joint_distances
from motion.models import MotionModel
from motion.render import Figure
from motion.skeleton.joint_names import find_feet, side_of
from wanvae.errors import UserError
from wanvae.report import Curves, Section, StickFigures

PAIR = ("original", "reconstruction")
FIRST_LAYER = "from the first layer alone"
SIDES = ("left", "right")
# Radians between the direction in which a figure looks and the direction of the viewer.
ASIDE = 0.55


def make_file_section(
    model: MotionModel,
    file: FileEvaluation,
    anchor: str,
    most: int,
    reading: Reading,
    *,
    folded: bool,
) -> Section:
    """Returns the section of a file: the original and reconstructions as figures, and curves.

    Args:
        file: the file to show.
        anchor: the name of the section in links.
        most: the largest number of frames to show.
        reading: what the file does not tell.
        folded: whether the section is closed at first.
    """
    try:
        recording = read_recording(file.path, model.config, reading, model.skeleton)
    except (UserError, OSError) as error:  # the file has changed since the evaluation
        return Section(file.name, anchor, [], str(error), folded)
    figures = make_figures(model, recording)
    names, fps = recording.bones.names, model.config.fps
    joints = torch.from_numpy(
        np.stack([figure.points[:, : len(names)] for figure in figures.values()])
    )
    errors = joint_distances(joints[1:], joints[:1].expand_as(joints[1:])).mean(2)
    shown = find_worst_frames(errors[0], most)
    frames = range(len(recording))[shown]
    parts = [
        make_stick_figures(figures, joints, names, frames, fps),
        Curves(
            "MPJPE of each frame",
            "frame",
            "mm",
            dict(zip(list(figures)[1:], errors[:, shown].tolist(), strict=True)),
            x=frames,
            by_frame=True,
            from_zero=True,
            first_colour=1,
        ),
    ]
    feet = find_feet(names)
    if feet:
        parts.append(make_feet_curves(joints[:2], feet, frames, fps))
    text = f"Frames {frames[0]:,} to {frames[-1]:,} of {len(recording):,}"
    text = f"{text}, where the error is the largest." if len(frames) < len(recording) else ""
    return Section(file.name, anchor, parts, text, folded)


def make_figures(model: MotionModel, recording: Recording) -> dict[str, Figure]:
    """Returns the figures of the original and its reconstruction, by name.

    If the model has several layers, a third figure is decoded from the first layer alone.
    """
    original, reconstruction = PAIR
    figures = {original: make_figure(recording, recording.features)}
    for name, layers in {reconstruction: None, FIRST_LAYER: 1}.items():
        if layers is None or model.config.num_layers > layers:
            _, decoded = reconstruct(model, recording, layers)
            figures[name] = make_figure(recording, decoded)
    return figures


def find_worst_frames(errors: Tensor, most: int) -> slice:
    """Returns the ``most`` frames in a row whose errors ``(T,)`` have the largest sum."""
    if len(errors) <= most:
        return slice(0, len(errors))
    sums = torch.cat([errors.new_zeros(1), errors.cumsum(0)])
    start = int((sums[most:] - sums[:-most]).argmax())
    return slice(start, start + most)


def make_stick_figures(
    figures: Mapping[str, Figure], joints: Tensor, names: Sequence[str], frames: range, fps: float
) -> StickFigures:
    """Returns figures for a page, seen from the front of the first figure, a little aside.

    Args:
        figures: the figures by name.
        joints: ``(F, T, J, 3)`` in metres, all frames of the F figures.
        names: the names of the joints.
        frames: the frames to show.
    """
    shown = slice(frames.start, frames.stop)
    return StickFigures(
        labels=list(figures),
        points=np.stack([figure.points[shown] for figure in figures.values()]),
        bones=next(iter(figures.values())).bones,
        fps=fps,
        first=frames.start,
        yaw=find_heading(joints[0, shown], names) + ASIDE,
    )


def find_heading(positions: Tensor, names: Sequence[str]) -> float:
    """Returns the mean direction in which a person looks, in radians from +z towards +x.

    Args:
        positions: ``(T, J, 3)`` of joints.
        names: the names of the joints; the result is 0 if they do not tell left and right.
    """
    sides = [[j for j, name in enumerate(names) if side_of(name) == side] for side in SIDES]
    if not all(sides):
        return 0.0
    left, right = (positions[:, side].mean((0, 1)) for side in sides)
    across = left - right
    return math.atan2(-across[2], across[0])


def make_feet_curves(joints: Tensor, feet: Sequence[int], frames: range, fps: float) -> Curves:
    """Returns curves of the mean speed in each frame of the feet on the ground of the original.

    Args:
        joints: ``(2, T, J, 3)`` in metres, all frames.
        feet: indices of joints.
        frames: the frames to show.
    """
    speeds = speeds_on_ground(joints, feet, fps).nanmean(2)
    # The last frame has no step to a next frame.
    speeds = F.pad(speeds, (0, 1), value=math.nan)[:, frames.start : frames.stop]
    return Curves(
        "Speed of the feet that are on the ground in the original",
        "frame",
        "m/s",
        dict(zip(PAIR, speeds.tolist(), strict=True)),
        x=frames,
        by_frame=True,
        from_zero=True,
    )
