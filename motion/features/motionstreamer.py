"""The features of MotionStreamer: 272 numbers a frame, with rotations that need no kinematics.

They are, in this order, for the 22 joints of HumanML3D: the step (x, z) of the root from the frame
before, in the axes of the heading of that frame; the turn of the heading since the frame before (6
numbers); positions of all joints from the point below the root; their changes since the frame
before; and rotations of all joints (6 numbers each). Positions, changes and the rotation of the
root are in the axes of the heading, which is where the front of the pelvis points. Rotations are
the rotations of SMPL, as two rows of a matrix. The first frame has no step, and no turn.

Source: "MotionStreamer: Streaming Motion Generation via Diffusion-based Autoregressive Model in
Causal Latent Space" (Xiao et al., 2025), and the processing at
Li-xingXiao/272-dim-Motion-Representation. Its motion has 30 frames per second.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from motion.errors import MotionError
from motion.features.rotations import (
    difference_backward,
    from_rot6d,
    to_rot6d,
    turn,
    turn_about_vertical,
)
from motion.skeleton.clip import MotionClip, turn_world
from motion.skeleton.inverse_kinematics import find_offsets
from motion.skeleton.packaged import HUMANML3D
from motion.skeleton.tree import Pose, forward_kinematics

CHANNELS, FPS = 272, 30.0
JOINTS = HUMANML3D.joints
STEP, TURN = slice(0, 2), slice(2, 8)
POSITIONS = slice(8, 8 + 3 * JOINTS)
CHANGES = slice(POSITIONS.stop, POSITIONS.stop + 3 * JOINTS)
ROTATIONS = slice(CHANGES.stop, CHANGES.stop + 6 * JOINTS)


class Path(NamedTuple):
    """The way of a person.

    Attributes:
        headings: (T, 3, 3), rotations from the axes of the heading to the axes of the world.
        ground: (T, 3), the points below the root, metres.
    """

    headings: Tensor
    ground: Tensor


def extract_streamer_features(clip: MotionClip) -> Tensor:
    """Returns the features (T, 272) of a clip of the 22 joints of HumanML3D, in its dtype.

    The motion is put on the floor, begins at the origin, and faces +z in its first frame. Rotations
    are kept as they are, so the rest pose should be the one of SMPL: a T pose that faces +z.

    Raises:
        MotionError: the clip has other joints.
    """
    if clip.skeleton.names != HUMANML3D.names:
        raise MotionError(
            f"the skeleton has {clip.skeleton.joints} joints; the 22 joints of HumanML3D are needed"
        )
    clip = turn_world(clip, find_headings(clip.rotations[:1, 0])[0].T)
    positions = clip.pose.positions
    start = positions[0, 0].clone()
    start[1] = positions[..., 1].min()
    positions = positions - start
    headings = find_headings(clip.rotations[:, 0])
    steps = difference_backward(positions[:, 0])
    steps[1:] = turn(headings[:-1].mT, steps[1:])
    turns = headings.mT.clone()  # the processing has the turn back
    turns[1:] = headings[1:].mT @ headings[:-1]
    local = positions.clone()
    local[..., [0, 2]] -= positions[:, :1, [0, 2]]
    local = turn(headings[:, None].mT, local)
    rotations = clip.rotations.clone()
    rotations[:, 0] = headings.mT @ rotations[:, 0]
    parts = [
        steps[:, [0, 2]],
        to_rot6d(turns, "rows"),
        local.flatten(1),
        difference_backward(local).flatten(1),
        to_rot6d(rotations, "rows").flatten(1),
    ]
    return torch.cat(parts, dim=1)


def restore_streamer_clip(features: Tensor, fps: float = FPS) -> MotionClip:
    """Returns the clip of features (T, 272), by their rotations and the path of their root.

    The features do not hold the skeleton. Its bones get the lengths and directions in the rest pose
    that fit positions and rotations best, which is exact for features of a recording.

    Raises:
        MotionError: the features have another number of channels, or there are no frames.
    """
    path, rotations = recover_path(features), recover_rotations(features)
    height = features[:, POSITIONS][:, 1]
    root = path.ground + torch.stack([0 * height, height, 0 * height], dim=1)
    rotations[:, 0] = path.headings @ rotations[:, 0]
    turned = forward_kinematics(HUMANML3D, rotations, root).rotations
    return MotionClip(
        skeleton=find_offsets(HUMANML3D, recover_streamer_positions(features), turned),
        rotations=rotations,
        root_positions=root,
        fps=fps,
    )


def recover_streamer_pose(features: Tensor) -> Pose:
    """Returns positions (T, 22, 3) in metres in the world, and rotations to the parents.

    Raises:
        MotionError: as ``restore_streamer_clip``.
    """
    rotations, path = recover_rotations(features), recover_path(features)
    rotations[:, 0] = path.headings @ rotations[:, 0]
    return Pose(recover_streamer_positions(features), rotations)


def recover_streamer_positions(features: Tensor) -> Tensor:
    """Returns positions (T, 22, 3) of joints in metres in the world, of features (T, 272).

    The person starts above the origin. Positions come from the positions of the features, and not
    from their rotations.

    Raises:
        MotionError: as ``restore_streamer_clip``.
    """
    path = recover_path(features)
    local = features[:, POSITIONS].unflatten(1, (JOINTS, 3))
    return turn(path.headings[:, None], local) + path.ground[:, None]


def recover_rotations(features: Tensor) -> Tensor:
    """Returns the rotations (T, 22, 3, 3) of features, with the root in the axes of the heading."""
    return from_rot6d(features[:, ROTATIONS].unflatten(1, (JOINTS, 6)), "rows")


def recover_path(features: Tensor) -> Path:
    """Returns the way of a person.

    Raises:
        MotionError: as ``restore_streamer_clip``.
    """
    if features.ndim != 2 or features.shape[1] != CHANNELS or not len(features):
        raise MotionError(
            f"features are {tuple(features.shape)}; (T, {CHANNELS}) and a frame are needed"
        )
    back = from_rot6d(features[:, TURN], "rows")
    # Only the turn about the vertical counts, which adds up exactly.
    headings = turn_about_vertical(measure_turn(back.mT).cumsum(dim=0))
    steps = torch.zeros_like(features[:, :3])
    steps[:, [0, 2]] = features[:, STEP]
    steps[1:] = turn(headings[:-1], steps[1:])
    return Path(headings, steps.cumsum(dim=0))


def find_headings(rotations: Tensor) -> Tensor:
    """Returns the rotations (T, 3, 3) about the vertical that turn +z as rotations (T, 3, 3) do."""
    front = rotations[..., 2]  # where +z goes
    return turn_about_vertical(torch.atan2(front[..., 0], front[..., 2]))


def measure_turn(rotations: Tensor) -> Tensor:
    """Returns the angle (T,) about the vertical of rotations (T, 3, 3) about it, in radians."""
    return torch.atan2(rotations[..., 0, 2], rotations[..., 0, 0])
