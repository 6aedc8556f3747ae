"""Trees of joints and where they are."""

import dataclasses
import json

import pytest
import roma
import torch

from motion.skeleton.packaged import HUMANML3D, KIT, SMPLX
from motion.skeleton.tree import EndSite, Skeleton, end_positions, forward_kinematics
from tests.motion.helpers import largest_difference, random_clip, random_skeleton
from wanvae.engine.config import from_json_dict, to_json_dict

LINE = Skeleton(
    names=("a", "b", "c"),
    parents=(-1, 0, 1),
    offsets=((0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 2.0, 0.0)),
    end_sites=(EndSite(joint=2, offset=(0.0, 0.0, 3.0)),),
)


def standing(skeleton):
    still = torch.eye(3, dtype=torch.float64).expand(skeleton.joints, 3, 3)
    return forward_kinematics(skeleton, still, torch.zeros(3, dtype=torch.float64))


def test_a_turn_moves_all_that_hangs_from_a_joint():
    rotations = torch.eye(3, dtype=torch.float64).expand(3, 3, 3).clone()
    quarter = torch.tensor([torch.pi / 2], dtype=torch.float64)
    rotations[1] = roma.euler_to_rotmat("Z", quarter[:, None])
    pose = forward_kinematics(LINE, rotations, torch.tensor([5.0, 0.0, 0.0], dtype=torch.float64))
    expected = torch.tensor([[5.0, 0, 0], [5, 1, 0], [3, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(pose.positions, expected)
    torch.testing.assert_close(
        end_positions(LINE, pose), torch.tensor([[3.0, 1, 3]], dtype=torch.float64)
    )


@pytest.mark.parametrize("joints", [1, 2, 17, 60])
def test_bones_keep_their_length_in_any_pose(joints):
    skeleton = random_skeleton(joints)
    pose = random_clip(skeleton).pose
    for joint, parent in enumerate(skeleton.parents[1:], start=1):
        lengths = (pose.positions[:, joint] - pose.positions[:, parent]).norm(dim=-1)
        expected = torch.tensor(skeleton.offsets[joint], dtype=torch.float64).norm()
        torch.testing.assert_close(lengths, expected.expand(len(lengths)))


def test_batches_are_each_alone_and_gradients_flow():
    clip = random_clip(random_skeleton(9), frames=6)
    rotations = clip.rotations.view(2, 3, 9, 3, 3).requires_grad_()
    batch = forward_kinematics(clip.skeleton, rotations, clip.root_positions.view(2, 3, 3))
    assert largest_difference(batch.positions.flatten(0, 1), clip.pose.positions) == 0
    batch.positions.sum().backward()
    assert rotations.grad.abs().sum() > 0


def test_span_is_the_longest_way_along_the_bones():
    assert LINE.span == pytest.approx(6.0)
    fork = dataclasses.replace(LINE, parents=(-1, 0, 0))
    assert fork.span == pytest.approx(6.0)
    longer = dataclasses.replace(fork, offsets=((9.0, 9.0, 9.0), (0.0, 4.0, 0.0), (0.0, 2.0, 0.0)))
    assert longer.span == pytest.approx(9.0)


@pytest.mark.parametrize("skeleton", [SMPLX, HUMANML3D, KIT, random_skeleton(7)])
def test_skeletons_are_json(skeleton):
    text = json.dumps(to_json_dict(skeleton))
    assert from_json_dict(Skeleton, json.loads(text)) == skeleton


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"names": ()}, "of 0 joints"),
        ({"parents": (-1, 0)}, "has 2 parents"),
        ({"offsets": ((0.0, 0.0, 0.0),) * 4}, "has 4 offsets"),
        ({"offsets": ((0.0, 0.0),) * 3}, "three numbers"),
        ({"parents": (0, 0, 1)}, "make it -1"),
        ({"parents": (-1, 2, 1)}, "parent of joint 1 is 2"),
        ({"orders": ("XYZ", "XYZ", "XYX")}, "'XYX'"),
        ({"end_sites": (EndSite(joint=3, offset=(0.0, 0.0, 0.0)),)}, "joint 3 of 3"),
        ({"unit": 0.0}, "unit must be positive"),
        ({"up": "x"}, "up must be y or z"),
    ],
)
def test_bad_skeletons_say_why(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LINE, **changes)


def test_rotations_of_another_skeleton_are_refused():
    with pytest.raises(ValueError, match=r"needs \(\.\.\., 3, 3, 3\)"):
        forward_kinematics(LINE, torch.zeros(2, 4, 3, 3), torch.zeros(2, 3))


def test_the_packaged_adult():
    assert (SMPLX.joints, HUMANML3D.joints, KIT.joints) == (55, 22, 21)
    assert SMPLX.names[:22] == HUMANML3D.names
    assert SMPLX.parents[:22] == HUMANML3D.parents
    assert [SMPLX.names[j] for j in (7, 8, 10, 11)] == [
        "left_ankle",
        "right_ankle",
        "left_foot",
        "right_foot",
    ]
    assert SMPLX.names[22] == "jaw"
    assert SMPLX.names[25] == "left_index1" and SMPLX.parents[25] == 20
    assert SMPLX.names[54] == "right_thumb3" and SMPLX.parents[40] == 21
    pose = standing(SMPLX)
    points = torch.cat([pose.positions, end_positions(SMPLX, pose)])
    height, width = (points.amax(dim=0) - points.amin(dim=0))[[1, 0]].tolist()
    assert 1.65 < height < 1.8 and 0.9 < width / height < 1.1
    mirrored = {name: p for name, p in zip(SMPLX.names, pose.positions, strict=True)}
    for name, position in mirrored.items():
        twin = mirrored[name.replace("left_", "right_")]
        if "left_" in name:
            assert position[0] > 0
            torch.testing.assert_close(position * torch.tensor([-1.0, 1, 1]), twin)
