"""Features of HumanML3D and KIT out of joints, against the published example and the way back."""

import numpy as np
import pytest
import torch
from torch import Tensor

from motion.errors import MotionError
from motion.features.feature_files import read_features
from motion.features.heading import make_turns, turn_vectors
from motion.features.humanml3d import recover_positions, rotation_channels
from motion.features.joint_features import (
    HUMANML3D_LAYOUT,
    KIT_LAYOUT,
    JointLayout,
    extract_joint_features,
    measure_bones,
    place_start,
    recover_turned_positions,
    smooth_over_time,
    to_kit_joints,
)
from motion.skeleton.packaged import KIT
from motion.skeleton.sample import walk
from tests.motion.helpers import RECORDINGS, largest_difference

LAYOUTS = {"humanml3d": HUMANML3D_LAYOUT, "kit": KIT_LAYOUT}


def joints_of(layout: JointLayout, frames: int = 60) -> Tensor:
    """A walk of these joints, that turns and begins elsewhere."""
    positions = walk(frames, 20.0).pose.positions[:, :22]
    if layout is KIT_LAYOUT:
        positions = to_kit_joints(positions)
    return turn_over_time(positions, 0.4, 2.0) + torch.tensor([1.0, 0.3, -2.0], dtype=torch.float64)


def turn_over_time(positions: Tensor, first: float, last: float) -> Tensor:
    """Joints (T, J, 3) turned about the vertical by angles from ``first`` to ``last``."""
    angles = torch.linspace(first, last, len(positions), dtype=torch.float64)
    return turn_vectors(positions, angles[:, None].expand(positions.shape[:2]))


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> JointLayout:
    return LAYOUTS[request.param]


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no shared recordings here")
def test_the_published_example() -> None:
    """Joints and features of 012314, as the authors publish them to check the processing.

    The file of joints has as many frames as the file of features, so the last frame of the motion
    is missing. The velocities of the features lead to it.
    """
    expected = read_features(RECORDINGS / "humanml3d_012314.npy").double()
    joints = torch.from_numpy(np.load(RECORDINGS / "humanml3d_012314_joints.npy")).double()
    heading = 2 * expected[:-1, 0].sum()
    step = make_turns(heading).T @ expected[-1, 193:259].view(22, 3, 1)
    joints = torch.cat([joints, joints[-1:] + step.squeeze(-1)])
    found = extract_joint_features(joints)
    assert found.shape == expected.shape == (170, 263)
    assert largest_difference(found, expected) < 2e-5
    assert torch.equal(found[:, -4:], expected[:, -4:])
    # All motions of the data set have the same bones, so a target from it changes nothing.
    same = extract_joint_features(joints, target=joints[40])
    assert largest_difference(same, expected) < 2e-5


def test_joints_come_back(layout: JointLayout) -> None:
    positions = joints_of(layout)
    features = extract_joint_features(positions)
    joints = layout.skeleton.joints
    assert features.shape == (59, 12 * joints - 1) and features.dtype == torch.float64
    placed = place_start(positions / layout.skeleton.unit, layout) * layout.skeleton.unit
    assert largest_difference(recover_positions(features), placed[:-1]) < 1e-9
    assert placed[..., 1].min() == pytest.approx(0) and placed[0, 0, [0, 2]].abs().max() < 1e-12
    vectors = features[:, rotation_channels(features.shape[1])].unflatten(1, (-1, 3))
    assert largest_difference(vectors.norm(dim=-1), torch.ones(())) < 1e-9


def test_the_person_faces_z_first(layout: JointLayout) -> None:
    first = recover_positions(extract_joint_features(joints_of(layout)))[0]
    for right, left in (layout.hips, layout.shoulders):
        across = first[left] - first[right]
        assert across[0] > 0.5 * across.norm()


def test_velocities_and_contacts_are_those_of_the_joints(layout: JointLayout) -> None:
    positions = joints_of(layout)
    features = extract_joint_features(positions)
    unit, count = layout.skeleton.unit, 3 * layout.skeleton.joints
    steps = positions.diff(dim=0) / unit
    speeds = features[:, -4 - count : -4].unflatten(1, (-1, 3)).norm(dim=-1)
    assert largest_difference(speeds, steps.norm(dim=-1)) < 1e-9 / unit
    for column, joint in enumerate(layout.feet):
        resting = steps[:, joint].square().sum(dim=1) < layout.contact
        assert torch.equal(features[:, column - 4] == 1, resting)
    # In KIT a foot must stay within a quarter of a millimetre.
    assert features[:, -4:].any() == (layout is HUMANML3D_LAYOUT)


def test_turned_and_moved_motion_has_the_same_features(layout: JointLayout) -> None:
    positions = joints_of(layout)
    moved = turn_over_time(positions, 2.5, 2.5) + torch.tensor(
        [3.0, -1.0, 5.0], dtype=torch.float64
    )
    difference = largest_difference(*map(extract_joint_features, (positions, moved)))
    assert difference < 1e-8 / layout.skeleton.unit


def test_lengths_come_from_the_target(layout: JointLayout) -> None:
    positions = joints_of(layout)
    target = 1.2 * positions[30] + 5
    features = extract_joint_features(positions, target=target)
    found = recover_positions(features)
    wanted = measure_bones(target, layout)
    for frame in (0, 20):
        assert largest_difference(measure_bones(found[frame], layout)[1:], wanted[1:]) < 1e-9
    grown = extract_joint_features(1.2 * positions)
    # Bones of this walk have one length, except in the feet of KIT, which are between two joints.
    tolerance = 0.02 if layout is KIT_LAYOUT else 1e-9
    assert largest_difference(recover_positions(grown), found) < tolerance


def test_rotations_tell_where_joints_are(layout: JointLayout) -> None:
    features = extract_joint_features(joints_of(layout))
    positions = recover_positions(features)
    turned = recover_turned_positions(features, positions)
    tolerance = 0.02 if layout is KIT_LAYOUT else 1e-9
    assert largest_difference(turned, positions) < tolerance


def test_a_turn_past_half_a_turn_is_small() -> None:
    """The published processing gives the frame in which the heading passes 180 degrees the wrong
    sign, so that all later joints are turned. Here they are where they were."""
    positions = joints_of(HUMANML3D_LAYOUT, 100)
    positions = turn_over_time(positions, 0.0, 7.0)
    features = extract_joint_features(positions)
    assert features[1:, 0].abs().max() < 0.1  # the heading of the first frame is not smoothed
    placed = place_start(positions, HUMANML3D_LAYOUT)
    assert largest_difference(recover_positions(features), placed[:-1]) < 1e-9


def test_smoothing_keeps_what_is_straight() -> None:
    line = torch.full((30, 2), 3.0, dtype=torch.float64)
    assert largest_difference(smooth_over_time(line), line) < 1e-12
    step = torch.cat([torch.zeros(200, 1), torch.ones(200, 1)]).double()
    smoothed = smooth_over_time(step)
    # A Gaussian of 20 frames has 84% of its weight before one standard deviation.
    assert smoothed[200 + 20].item() == pytest.approx(0.845, abs=0.005)
    assert smoothed[199] + smoothed[200] == pytest.approx(1)


def test_kit_joints_have_the_places_of_their_names() -> None:
    positions = walk(3).pose.positions[:, :22]
    joints = to_kit_joints(positions)
    assert joints.shape == (3, 21, 3)
    sides = joints[0, :, 0] - joints[0, 0, 0]
    for joint, name in enumerate(KIT.names):
        if name.startswith(("left", "right")):
            assert (sides[joint] > 0) == name.startswith("left"), name
    ankle, middle, toe = joints[0, 13:16]
    assert ankle[1] > middle[1] > toe[1]


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (torch.zeros(4, 24, 3), r"\(4, 24, 3\); \(T, 22, 3\)"),
        (torch.zeros(4, 66), r"\(4, 66\)"),
        (torch.randn(1, 22, 3), "1 frames; features need at least 2"),
        (
            torch.cat([torch.zeros(1, 22, 3), torch.randn(3, 22, 3)]),
            r"joint 1 \(left_hip\) is at the place of its parent in frame 0, .* this frame out",
        ),
        (
            torch.zeros(4, 22, 3),
            r"joint 1 \(left_hip\) is at the place of its parent in all frames, .* to another body",
        ),
    ],
)
def test_other_joints_are_refused(positions: Tensor, message: str) -> None:
    with pytest.raises(MotionError, match=message):
        extract_joint_features(positions)
