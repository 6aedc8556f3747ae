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
from motion.features.heading import make_turns, turn_roots, turn_vectors
from motion.features.rotations import difference_backward, from_rot6d, to_rot6d
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
        headings: (..., T), angles about the vertical in radians, from +z towards +x.
        ground: (..., T, 3), the points below the root, metres.
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
    clip = turn_world(clip, make_turns(-find_fronts(clip.rotations[0, 0])))
    positions = clip.pose.positions
    start = positions[0, 0].clone()
    start[1] = positions[..., 1].min()
    positions = positions - start
    headings = find_fronts(clip.rotations[:, 0])
    steps = difference_backward(positions[:, 0])
    steps[1:] = turn_vectors(steps[1:], -headings[:-1])
    local = positions.clone()
    local[..., [0, 2]] -= positions[:, :1, [0, 2]]
    local = turn_vectors(local, -headings[:, None])
    parts = [
        steps[:, [0, 2]],
        # The processing has the turn back to the heading before.
        to_rot6d(make_turns(-difference_backward(headings)), "rows"),
        local.flatten(1),
        difference_backward(local).flatten(1),
        to_rot6d(turn_roots(clip.rotations, -headings), "rows").flatten(1),
    ]
    return torch.cat(parts, dim=1)


def restore_streamer_clip(features: Tensor) -> MotionClip:
    """Returns the clip of features (T, 272), by their rotations and the path of their root.

    The features do not hold the skeleton. Its bones get the lengths and directions in the rest pose
    that fit positions and rotations best, which is exact for features of a recording.

    Raises:
        MotionError: the features have another number of channels, or there are no frames.
    """
    positions, rotations = recover_streamer_pose(features)
    root = positions[:, 0]
    turned = forward_kinematics(HUMANML3D, rotations, root).rotations
    return MotionClip(
        skeleton=find_offsets(HUMANML3D, positions, turned),
        rotations=rotations,
        root_positions=root,
        fps=FPS,
    )


def recover_streamer_pose(features: Tensor) -> Pose:
    """Returns positions (T, 22, 3) in metres in the world, and rotations to the parents.

    Raises:
        MotionError: as ``restore_streamer_clip``.
    """
    headings = recover_path(features).headings
    rotations = from_rot6d(features[..., ROTATIONS].unflatten(-1, (JOINTS, 6)), "rows")
    return Pose(recover_streamer_positions(features), turn_roots(rotations, headings))


def recover_streamer_positions(features: Tensor) -> Tensor:
    """Returns positions (..., T, 22, 3) of joints in metres in the world, of (..., T, 272).

    The person starts above the origin. Positions come from the positions of the features, and not
    from their rotations.

    Raises:
        MotionError: as ``restore_streamer_clip``.
    """
    path = recover_path(features)
    local = features[..., POSITIONS].unflatten(-1, (JOINTS, 3))
    return turn_vectors(local, path.headings[..., None]) + path.ground[..., None, :]


def recover_path(features: Tensor) -> Path:
    """Returns the way of a person, of features (..., T, 272).

    Raises:
        MotionError: as ``restore_streamer_clip``.
    """
    if features.ndim < 2 or features.shape[-1] != CHANNELS or not features.shape[-2]:
        raise MotionError(
            f"features are {tuple(features.shape)}; (T, {CHANNELS}) and a frame are needed"
        )
    back = from_rot6d(features[..., TURN], "rows")
    # Only the turn about the vertical counts, and angles add up.
    headings = torch.atan2(-back[..., 0, 2], back[..., 0, 0]).cumsum(dim=-1)
    x, z = features[..., STEP].unbind(dim=-1)
    steps = torch.stack([x, torch.zeros_like(x), z], dim=-1)
    # A step is in the axes of the heading in the frame that it comes from.
    steps = torch.cat(
        [steps[..., :1, :], turn_vectors(steps[..., 1:, :], headings[..., :-1])], dim=-2
    )
    return Path(headings, steps.cumsum(dim=-2))


def find_fronts(rotations: Tensor) -> Tensor:
    """Returns the angles (...) about the vertical to which rotations (..., 3, 3) turn +z."""
    front = rotations[..., 2]
    return torch.atan2(front[..., 0], front[..., 2])
