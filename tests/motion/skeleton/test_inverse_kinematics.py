"""Inverse kinematics: positions of joints give a clip whose joints are there."""

from dataclasses import replace

import pytest
import roma
import torch

from motion.errors import MotionError
from motion.skeleton.inverse_kinematics import find_clip, find_offsets, find_shortest_turns
from motion.skeleton.packaged import HUMANML3D, KIT, SMPLX
from motion.skeleton.sample import walk
from motion.skeleton.selection import find_humanml3d_joints, select_joints
from motion.skeleton.tree import Skeleton
from tests.motion.helpers import largest_difference, random_clip


@pytest.mark.parametrize("skeleton", [HUMANML3D, KIT, SMPLX], ids=["humanml3d", "kit", "smplx"])
def test_joints_are_where_they_should_be(skeleton: Skeleton) -> None:
    positions = random_clip(skeleton).pose.positions
    clip = find_clip(positions, skeleton, 20.0)
    assert clip.skeleton.names == skeleton.names and clip.fps == 20.0
    assert largest_difference(clip.pose.positions, positions) < 1e-6


def test_the_rest_pose_of_a_stiff_pelvis_comes_from_the_motion() -> None:
    """Bones of another body that share a joint, as hips do, are not the packaged ones."""
    wider = [list(offset) for offset in HUMANML3D.offsets]
    for joint in (1, 2, 13, 14):
        wider[joint][0] *= 1.5
        wider[joint][2] += 0.02
    body = replace(HUMANML3D, offsets=tuple(map(tuple, wider)))
    positions = random_clip(body, 30).pose.positions
    clip = find_clip(positions, HUMANML3D, 20.0)
    assert largest_difference(clip.pose.positions, positions) < 1e-5


def test_bones_that_change_their_length_keep_their_direction() -> None:
    """Errors of lengths do not add up along a limb: the end is as near as its own bone."""
    positions = random_clip(HUMANML3D, 20).pose.positions
    noise = torch.randn(positions.shape, generator=torch.Generator().manual_seed(0))
    noisy = positions + 0.01 * noise
    distances = (find_clip(noisy, HUMANML3D, 20.0).pose.positions - noisy).norm(dim=-1)
    assert distances.mean() < 0.015 and distances[:, 20].mean() < 2 * distances[:, 18].mean()


def test_offsets_follow_from_positions_and_rotations() -> None:
    clip = random_clip(SMPLX)
    found = find_offsets(replace(SMPLX, offsets=HUMANML3D.offsets[:1] * 55), *clip.pose)
    # The offset of the root is not seen in a motion.
    offsets, wanted = (torch.tensor(skeleton.offsets[1:]) for skeleton in (found, SMPLX))
    assert largest_difference(offsets, wanted) < 1e-6


def test_shortest_turns() -> None:
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64)
    end[:3] = -2 * start[:3]
    turns = find_shortest_turns(start, end)
    unit, other = (x / x.norm(dim=1, keepdim=True) for x in (start, end))
    assert largest_difference((turns @ unit[..., None]).squeeze(-1), other) < 1e-9
    angles = roma.rotmat_to_rotvec(turns).norm(dim=1)
    assert largest_difference(angles, (unit * other).sum(1).clamp(-1, 1).arccos()) < 1e-6


def test_other_shapes_are_refused() -> None:
    with pytest.raises(MotionError, match=r"\(2, 21, 3\); \(T, 22, 3\)"):
        find_clip(torch.zeros(2, 21, 3), HUMANML3D, 20.0)
    with pytest.raises(MotionError, match="at least one frame"):
        find_clip(torch.zeros(0, 22, 3), HUMANML3D, 20.0)


def test_an_smpl_body_keeps_its_rotations() -> None:
    clip = walk(9)
    selected = select_joints(clip)
    assert not selected.by_kinematics and selected.clip.skeleton.names == HUMANML3D.names
    assert largest_difference(selected.clip.pose.positions, clip.pose.positions[:, :22]) < 1e-12
    assert largest_difference(selected.clip.rotations, clip.rotations[:, :22]) < 1e-12
    assert largest_difference(selected.at_rate(30.0).positions, selected.positions) == 0


def test_another_rest_pose_goes_by_kinematics() -> None:
    """The same names, but arms that hang down at rest: rotations would mean other poses."""
    offsets = [list(offset) for offset in SMPLX.offsets]
    for side in ("left", "right"):
        for part in ("elbow", "wrist"):
            offsets[SMPLX.names.index(f"{side}_{part}")] = [0.0, -0.26, 0.0]
    clip = walk(9)
    clip = replace(clip, skeleton=replace(SMPLX, offsets=tuple(map(tuple, offsets))))
    selected = select_joints(clip)
    assert selected.by_kinematics and selected.distances.max() < 1e-2
    assert largest_difference(selected.positions, clip.pose.positions[:, :22]) == 0


def test_missing_joints_are_named() -> None:
    with pytest.raises(
        MotionError,
        match="no joints are known by their names as neck, left_collar",
    ):
        find_humanml3d_joints(KIT)


def test_joints_are_found_by_the_names_of_other_programs() -> None:
    """Their rest poses differ, so rotations come from the places of the joints."""
    names = dict(zip(HUMANML3D.names, MIXAMO, strict=True))
    skeleton = replace(
        HUMANML3D,
        names=tuple(f"mixamorig:{names[name]}" for name in HUMANML3D.names),
    )
    clip = random_clip(skeleton)
    selected = select_joints(clip)
    assert selected.by_kinematics and selected.clip.skeleton.names == HUMANML3D.names
    assert largest_difference(selected.positions, clip.pose.positions) < 1e-12
    assert selected.distances.max() < 1e-3


MIXAMO = (
    *("Hips", "LeftUpLeg", "RightUpLeg", "Spine", "LeftLeg", "RightLeg", "Spine1", "LeftFoot"),
    *("RightFoot", "Spine2", "LeftToeBase", "RightToeBase", "Neck", "LeftShoulder"),
    *("RightShoulder", "Head", "LeftArm", "RightArm", "LeftForeArm", "RightForeArm", "LeftHand"),
    "RightHand",
)
