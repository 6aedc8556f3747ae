"""Mirroring motion: the left side moves as the right side did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from motion.errors import MotionError
from motion.skeleton.clip import MotionClip
from motion.skeleton.joint_names import side_of
from motion.skeleton.tree import Skeleton

# The largest difference between a bone and the mirror image of its twin, as a share of its length,
# or of the mean length of bones if that is longer.
LARGEST_DIFFERENCE = 0.25


def mirror(clip: MotionClip) -> MotionClip:
    """Returns the clip in a mirror that stands upright, at x = 0. The skeleton stays as it is.

    Raises:
        MotionError: the names of the joints do not tell the sides, or the sides of the skeleton
            are not mirror images.
    """
    twins = find_twins(clip.skeleton.names)
    inside = clip.rotations.new_tensor(find_mirror(clip.skeleton, twins))
    world = clip.rotations.new_tensor((-1.0, 1.0, 1.0))
    # Products with diagonal matrices.
    rotations = inside[:, None] * clip.rotations[:, list(twins)] * inside
    rotations[:, 0] = world[:, None] * clip.rotations[:, 0] * inside
    return replace(clip, rotations=rotations, root_positions=clip.root_positions * world)


def find_twins(names: Sequence[str]) -> tuple[int, ...]:
    """Returns for each joint the index of the same joint of the other side, or of itself.

    Raises:
        MotionError: no joint has a side, or a joint of one side is not at the other.
    """
    twins = [find_twin(name, names) for name in names]
    if all(joint == twin for joint, twin in enumerate(twins)):
        raise MotionError("the names of the joints do not tell left and right, so nothing mirrors")
    return tuple(twins)


def find_twin(name: str, names: Sequence[str]) -> int:
    """Returns the index of the joint of the other side, or of the joint itself without a side."""
    for one, other in (("left", "right"), ("right", "left")):
        # LeftArm and RightArm, left_arm and right_arm, LArm and RArm, l_arm and r_arm.
        for old, new in ((one, other), (one[0], other[0])):
            for change in (str.lower, str.title, str.upper):
                for place in find_all(change(old), name):
                    twin = name[:place] + change(new) + name[place + len(old) :]
                    if twin in names:
                        return names.index(twin)
    if side_of(name) is not None:
        raise MotionError(f"joint {name} has no joint of the same name at the other side")
    return names.index(name)


def find_all(part: str, name: str) -> list[int]:
    """Returns the places of a part of a name."""
    return [place for place in range(len(name)) if name.startswith(part, place)]


def find_mirror(skeleton: Skeleton, twins: Sequence[int]) -> tuple[float, ...]:
    """Returns the signs of the axes of a mirror between the sides, such as (-1, 1, 1).

    Raises:
        MotionError: no mirror turns one side to the other.
    """
    offsets = torch.tensor(skeleton.offsets, dtype=torch.float64)[1:]
    others = torch.tensor(skeleton.offsets, dtype=torch.float64)[list(twins[1:])]
    mirrors = 1 - 2 * torch.eye(3, dtype=torch.float64)
    differences = (mirrors[:, None] * others - offsets).norm(dim=2)
    best = int(differences.sum(dim=1).argmin())
    # Some joints lie on their parents.
    allowed = LARGEST_DIFFERENCE * offsets.norm(dim=1).clamp(min=offsets.norm(dim=1).mean())
    if (differences[best] > allowed).any():
        raise MotionError(
            "the sides of the skeleton are not mirror images in its rest pose, so its motion "
            "cannot be mirrored"
        )
    return tuple(mirrors[best].tolist())
