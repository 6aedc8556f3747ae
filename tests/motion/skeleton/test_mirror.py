"""Motion in a mirror."""

from dataclasses import replace

import pytest
import torch

from motion.errors import MotionError
from motion.skeleton.mirror import find_mirror, find_twins, mirror
from motion.skeleton.packaged import HUMANML3D, KIT, SMPLX
from motion.skeleton.sample import walk
from tests.motion.helpers import random_clip, random_skeleton

WALK = walk(30)
MIRROR = torch.tensor([-1.0, 1.0, 1.0]).double()


@pytest.mark.parametrize(
    "names",
    [
        ("hips", "left_arm", "right_arm"),
        ("hips", "LeftArm", "RightArm"),
        ("hips", "mixamorig:LeftHandIndex1", "mixamorig:RightHandIndex1"),
        ("pelvis", "l_shoulder", "r_shoulder"),
        ("Hips", "LHipJoint", "RHipJoint"),
        ("Hips", "LEFT_LEG", "RIGHT_LEG"),
        ("collarless", "lhand", "rhand"),
    ],
)
def test_twins_by_name(names):
    assert find_twins(names) == (0, 2, 1)


@pytest.mark.parametrize("skeleton", [SMPLX, HUMANML3D, KIT])
def test_packaged_skeletons_are_mirror_images(skeleton):
    twins = find_twins(skeleton.names)
    assert [twins[twin] for twin in twins] == list(range(skeleton.joints))
    assert find_mirror(skeleton, twins) == (-1.0, 1.0, 1.0)


def test_the_left_moves_as_the_right_did():
    mirrored, twins = mirror(WALK), list(find_twins(SMPLX.names))
    expected = WALK.pose.positions[:, twins] * MIRROR
    torch.testing.assert_close(mirrored.pose.positions, expected)
    assert mirrored.skeleton == WALK.skeleton
    assert torch.equal(mirror(mirrored).rotations, WALK.rotations)
    assert torch.equal(mirror(mirrored).root_positions, WALK.root_positions)
    assert torch.linalg.det(mirrored.rotations).sub(1).abs().max() < 1e-9


def test_sides_may_lie_along_any_axis_of_the_skeleton():
    """The mirror of the world stands upright all the same."""
    turn = torch.tensor([[0, 0, 1], [0, 1, 0], [-1, 0, 0]]).double()
    offsets = torch.tensor(SMPLX.offsets).double() @ turn.T
    skeleton = replace(SMPLX, offsets=tuple(map(tuple, offsets.tolist())), end_sites=())
    rotations = turn @ WALK.rotations @ turn.T
    rotations[:, 0] = WALK.rotations[:, 0] @ turn.T
    clip = replace(WALK, skeleton=skeleton, rotations=rotations)
    torch.testing.assert_close(clip.pose.positions, WALK.pose.positions)
    assert find_mirror(skeleton, find_twins(skeleton.names)) == (1.0, 1.0, -1.0)
    torch.testing.assert_close(mirror(clip).pose.positions, mirror(WALK).pose.positions)


def test_what_has_no_mirror_image_is_refused():
    with pytest.raises(MotionError, match="do not tell left and right"):
        mirror(random_clip(random_skeleton(5)))
    with pytest.raises(MotionError, match="LeftArm has no joint of the same name"):
        find_twins(("Hips", "LeftArm", "RightFoot"))
    joint = SMPLX.names.index("left_elbow")
    offsets = list(SMPLX.offsets)
    offsets[joint] = (0.0, 0.265, 0.0)
    with pytest.raises(MotionError, match="not mirror images"):
        mirror(replace(WALK, skeleton=replace(SMPLX, offsets=tuple(offsets))))
