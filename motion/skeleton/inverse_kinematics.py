"""Inverse kinematics: rotations of joints, and offsets of bones, out of positions of joints.

Positions do not tell how a bone is turned about itself. A joint with several bones turns as they
lie together; a joint with one bone takes the smallest turn from the axes of its parent; and a joint
without bones turns as its parent.
"""

from __future__ import annotations

from dataclasses import replace

import roma
import torch
import torch.nn.functional as F
from torch import Tensor

from motion.errors import MotionError
from motion.skeleton.clip import MotionClip
from motion.skeleton.tree import Skeleton

# Rounds of finding the rotations and then the offsets; more change nothing in a recording.
ROUNDS = 5
# The cosine of the angle between vectors that count as opposite.
OPPOSITE = -1 + 1e-12


def find_clip(positions: Tensor, skeleton: Skeleton, fps: float) -> MotionClip:
    """Returns a clip whose joints are at ``positions``, as near as bones of one length can be.

    Bones get the mean lengths of the motion. Bones that share a joint also get their directions in
    the rest pose from the motion, so that a stiff pelvis or chest is exact.

    Args:
        positions: (T, J, 3), metres, y up.
        skeleton: the tree, and the directions of the bones in the rest pose.
        fps: frames per second.

    Returns:
        A clip of the same names and tree, in the dtype of the positions.

    Raises:
        MotionError: the positions are not of J joints, or there are no frames.
    """
    if positions.ndim != 3 or positions.shape[1:] != (skeleton.joints, 3) or not len(positions):
        raise MotionError(
            f"positions are {tuple(positions.shape)}; (T, {skeleton.joints}, 3) and at least one "
            "frame are needed"
        )
    offsets = scale_offsets(skeleton, positions)
    turned = find_world_rotations(skeleton, offsets, positions)
    for _ in range(ROUNDS):
        offsets = fit_offsets(skeleton, positions, turned, offsets)
        turned = find_world_rotations(skeleton, offsets, positions)
    return MotionClip(
        skeleton=with_offsets(skeleton, offsets),
        rotations=to_local(skeleton, turned),
        root_positions=positions[:, 0],
        fps=fps,
    )


def find_offsets(skeleton: Skeleton, positions: Tensor, turned: Tensor) -> Skeleton:
    """Returns the skeleton whose bones fit positions and rotations that are known.

    Each offset is the mean over all frames, which is the best one by least squares.

    Args:
        positions: (T, J, 3), metres.
        turned: (T, J, 3, 3), rotations from the axes of the joints to the axes of the world.
    """
    offsets = positions.new_tensor(skeleton.offsets)
    offsets[1:] = find_mean_bones(skeleton, positions, turned)
    return with_offsets(skeleton, offsets)


def scale_offsets(skeleton: Skeleton, positions: Tensor) -> Tensor:
    """Returns the offsets (J, 3) of a skeleton with the mean lengths of bones of a motion."""
    offsets = positions.new_tensor(skeleton.offsets)
    lengths = find_bones(skeleton, positions).norm(dim=-1).mean(dim=0)
    offsets[1:] = F.normalize(offsets[1:], dim=-1) * lengths[:, None]
    return offsets


def fit_offsets(skeleton: Skeleton, positions: Tensor, turned: Tensor, offsets: Tensor) -> Tensor:
    """Returns offsets (J, 3) with the offsets of bones that share a joint fitted to a motion."""
    fitted = offsets.clone()
    means = find_mean_bones(skeleton, positions, turned)
    for children in skeleton.children:
        if len(children) > 1:
            fitted[list(children)] = means[[child - 1 for child in children]]
    return fitted


def find_mean_bones(skeleton: Skeleton, positions: Tensor, turned: Tensor) -> Tensor:
    """Returns the mean over time of all bones (J - 1, 3), in the axes of their parents."""
    bones = find_bones(skeleton, positions)
    return (turned[:, skeleton.parents[1:]].mT @ bones[..., None]).squeeze(-1).mean(dim=0)


def find_bones(skeleton: Skeleton, positions: Tensor) -> Tensor:
    """Returns the vectors (T, J - 1, 3) to all joints except the root, from their parents."""
    return positions[:, 1:] - positions[:, skeleton.parents[1:]]


def find_world_rotations(skeleton: Skeleton, offsets: Tensor, positions: Tensor) -> Tensor:
    """Returns the rotations (T, J, 3, 3) of all joints from their axes to the axes of the world.

    Bones point from where their joint comes to lie to where their end should lie, so that errors of
    lengths do not add up along a limb.

    Args:
        offsets: (J, 3), the bones in the rest pose.
        positions: (T, J, 3).
    """
    still = torch.eye(3).to(positions).expand(len(positions), 3, 3)
    turned, placed = [], [positions[:, 0]]
    for joint, children in enumerate(skeleton.children):
        parent = skeleton.parents[joint]
        above = turned[parent] if joint else still
        if joint:
            placed.append(placed[parent] + above @ offsets[joint])
        if not children:
            turned.append(above)
            continue
        rest = offsets[list(children)]
        bones = positions[:, list(children)] - placed[joint][:, None]
        if len(children) > 1:
            turned.append(roma.special_procrustes(bones.mT @ rest))
        else:
            lies = (above @ rest[0]).expand_as(bones[:, 0])
            turned.append(find_shortest_turns(lies, bones[:, 0]) @ above)
    return torch.stack(turned, dim=1)


def to_local(skeleton: Skeleton, turned: Tensor) -> Tensor:
    """Returns rotations (T, J, 3, 3) to the axes of the parents, from rotations to the world."""
    local = turned.clone()
    local[:, 1:] = turned[:, skeleton.parents[1:]].mT @ turned[:, 1:]
    return local


def with_offsets(skeleton: Skeleton, offsets: Tensor) -> Skeleton:
    """Returns a skeleton with other offsets (J, 3), in metres."""
    return replace(skeleton, offsets=tuple(map(tuple, offsets.double().tolist())))


def find_shortest_turns(start: Tensor, end: Tensor) -> Tensor:
    """Returns the rotations (T, 3, 3) by the smallest angle from vectors (T, 3) to vectors (T, 3).

    For opposite vectors this angle has no axis; the result is a half turn about some axis. A vector
    without length gives no turn.
    """
    start, end = F.normalize(start, dim=-1), F.normalize(end, dim=-1)
    axis, cosine = torch.linalg.cross(start, end), (start * end).sum(dim=-1, keepdim=True)
    opposite = cosine < OPPOSITE
    # Any axis at a right angle is as good where the vectors are opposite.
    smallest = F.one_hot(start.abs().argmin(dim=-1), 3).to(start)
    axis = torch.where(opposite, torch.linalg.cross(start, smallest), axis)
    real = torch.where(opposite, torch.zeros_like(cosine), 1 + cosine)
    return roma.unitquat_to_rotmat(F.normalize(torch.cat([axis, real], dim=-1), dim=-1))
