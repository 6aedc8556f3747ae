"""Where a motion is looked at, from where, and how fast its feet are there."""

import math

import numpy as np
import pytest
import roma
import torch

from motion.evaluate.side_by_side import (
    find_heading,
    find_worst_frames,
    make_feet_curves,
    make_figures,
    make_stick_figures,
)
from motion.features.recording import Recording
from motion.features.rotations import extract_features
from motion.render import Figure
from motion.skeleton.clip import MotionClip
from motion.skeleton.packaged import SMPLX
from motion.skeleton.sample import walk
from tests.motion.small_tokenizers import ROOTLESS, WALK, tiny_tokenizer

NAMES = SMPLX.names


def standing(degrees: float = 0.0, frames: int = 6) -> MotionClip:
    """Someone who stands and looks where z is, or so many degrees from there towards x."""
    turn = roma.euler_to_rotmat("Y", torch.tensor([degrees]).double(), degrees=True)
    rotations = torch.eye(3).double().repeat(frames, SMPLX.joints, 1, 1)
    rotations[:, 0] = turn
    return MotionClip(
        skeleton=SMPLX, rotations=rotations, root_positions=torch.zeros(frames, 3), fps=30.0
    )


@pytest.mark.parametrize("degrees", [0.0, 40.0, 135.0, -90.0])
def test_figures_are_seen_from_where_they_look(degrees: float) -> None:
    positions = standing(degrees).pose.positions
    assert math.degrees(find_heading(positions, NAMES)) == pytest.approx(degrees, abs=1e-3)
    assert find_heading(positions, ["joint"] * len(NAMES)) == 0.0


def test_the_stretch_of_the_largest_error() -> None:
    errors = torch.tensor([0.0, 5.0, 1.0, 3.0, 4.0, 0.0])
    assert find_worst_frames(errors, 1) == slice(1, 2)
    assert find_worst_frames(errors, 2) == slice(3, 5)
    assert find_worst_frames(errors, 5) == slice(0, 5)
    for most in (6, 7):
        assert find_worst_frames(errors, most) == slice(0, 6)


def test_figures_are_those_of_the_frames_shown() -> None:
    clips = walk(12), standing(frames=12)
    pair = [Figure.of_clip(clip) for clip in clips]
    figures = dict(zip(("a", "b"), pair, strict=True))
    joints = torch.stack([clip.pose.positions for clip in clips])
    part = make_stick_figures(figures, joints, NAMES, range(3, 8), 30.0)
    assert part.labels == ["a", "b"] and part.first == 3
    assert np.array_equal(part.points[1], pair[1].points[3:8])
    assert part.points.shape[2] > SMPLX.joints  # with the tips of fingers and toes


@pytest.mark.parametrize("layers", [1, 2])
def test_the_first_layer_alone_is_shown_if_there_are_more(layers: int) -> None:
    model = tiny_tokenizer(layers=layers)
    features = extract_features(WALK, ROOTLESS).float()
    recording = Recording(config=model.config, features=features, skeleton=WALK.skeleton, clip=WALK)
    figures = make_figures(model, recording)
    assert (
        list(figures) == ["original", "reconstruction", "from the first layer alone"][: layers + 1]
    )
    for number, figure in enumerate(list(figures.values())[:0:-1], start=1):
        decoded = model.decode(model.encode(features[None]), len(WALK), layers=number)[0]
        expected = recording.joints_of(decoded).positions.numpy()
        assert np.allclose(figure.points[:, : SMPLX.joints], expected, atol=1e-6)


def test_speeds_of_feet_are_those_of_the_frames_shown() -> None:
    joints = torch.zeros(2, 10, 2, 3)
    joints[0, 8:, :, 1] = 1.0
    joints[1, :, 1, 0] = torch.arange(10) ** 2
    curves = make_feet_curves(joints, [0, 1], range(4, 10), 10.0)
    assert curves.lines["original"][:3] == [0.0] * 3
    # The mean of a foot that rests and one that is ever faster.
    assert curves.lines["reconstruction"][:3] == pytest.approx([45.0, 55.0, 65.0])
    assert all(np.isnan(line[3:]).all() and len(line) == 6 for line in curves.lines.values())
