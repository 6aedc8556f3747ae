"""A motion and its reconstruction as a section of a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from motion.commands.folders import FileEvaluation
from motion.commands.pipeline import figure_of, reconstruct
from motion.evaluate.evaluation import speeds_on_ground
from motion.features.recording import Recording, read_recording
from motion.metrics import joint_distances
from motion.model import RVQVAE
from motion.render import Figure
from motion.skeleton.joint_names import find_feet, side_of
from wanvae.errors import UserError
from wanvae.report import Curves, Section, StickFigures

PAIR = ("original", "reconstruction")
FIRST_LAYER = "from the first layer alone"
SIDES = ("left", "right")
# Radians from where a figure looks to where it is seen from.
ASIDE = 0.55


def file_section(
    model: RVQVAE, file: FileEvaluation, anchor: str, most: int, *, folded: bool
) -> Section:
    """A file and what the model makes of it: figures, and curves over the same frames.

    Args:
        most: frames to show.
    """
    try:
        recording = read_recording(file.path, model.config)
    except (UserError, OSError) as error:  # it has changed since it was evaluated
        return Section(file.name, anchor, [], str(error), folded)
    figures = figures_of(model, recording)
    names, fps = recording.skeleton.names, model.config.fps
    joints = torch.from_numpy(
        np.stack([figure.points[:, : len(names)] for figure in figures.values()])
    )
    errors = joint_distances(joints[1:], joints[:1].expand_as(joints[1:])).mean(2)
    shown = largest_stretch(errors[0], most)
    frames = range(len(recording))[shown]
    parts = [
        stick_figures(figures, joints, names, frames, fps),
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
        parts.append(feet_curves(joints[:2], feet, frames, fps))
    text = f"Frames {frames[0]:,} to {frames[-1]:,} of {len(recording):,}"
    text = f"{text}, where the error is the largest." if len(frames) < len(recording) else ""
    return Section(file.name, anchor, parts, text, folded)


def figures_of(model: RVQVAE, recording: Recording) -> dict[str, Figure]:
    """The original, its reconstruction, and that from the first layer if there are several."""
    original, made = PAIR
    figures = {original: figure_of(recording, recording.features)}
    for name, layers in {made: None, FIRST_LAYER: 1}.items():
        if layers != model.config.quantizer.layers:
            _, decoded = reconstruct(model, recording, layers)
            figures[name] = figure_of(recording, decoded)
    return figures


def largest_stretch(errors: Tensor, most: int) -> slice:
    """The ``most`` frames in a row, or all, whose errors ``(T,)`` have the largest sum."""
    if len(errors) <= most:
        return slice(0, len(errors))
    sums = torch.cat([errors.new_zeros(1), errors.cumsum(0)])
    start = int((sums[most:] - sums[:-most]).argmax())
    return slice(start, start + most)


def stick_figures(
    figures: Mapping[str, Figure], joints: Tensor, names: Sequence[str], frames: range, fps: float
) -> StickFigures:
    """Figures, seen from where the first one looks, a little aside.

    Args:
        figures: by name.
        joints: ``(F, T, J, 3)`` in metres, of all frames.
        names: of the joints.
        frames: to show.
    """
    shown = slice(frames.start, frames.stop)
    return StickFigures(
        labels=list(figures),
        points=np.stack([figure.points[shown] for figure in figures.values()]),
        bones=next(iter(figures.values())).bones,
        fps=fps,
        first=frames.start,
        yaw=heading(joints[0, shown], names) + ASIDE,
    )


def heading(positions: Tensor, names: Sequence[str]) -> float:
    """Where a person looks on average, in radians about the vertical from +z to +x.

    Args:
        positions: ``(T, J, 3)`` of joints.
        names: of the joints; 0 is returned if they do not say which are at the left and right.
    """
    sides = [[j for j, name in enumerate(names) if side_of(name) == side] for side in SIDES]
    if not all(sides):
        return 0.0
    left, right = (positions[:, side].mean((0, 1)) for side in sides)
    across = left - right
    return math.atan2(-across[2], across[0])


def feet_curves(joints: Tensor, feet: Sequence[int], frames: range, fps: float) -> Curves:
    """Speed of the feet that are on the ground in the original, the mean over these in each frame.

    Args:
        joints: ``(2, T, J, 3)`` in metres, of all frames.
        feet: indices of joints.
        frames: to show.
    """
    speeds = speeds_on_ground(joints, feet, fps).nanmean(2)
    # From the last frame there is no step.
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
