"""How two rest poses differ: the rotation of each joint that makes their bones parallel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from motion.skeleton.body_parts import find_parts
from motion.skeleton.joint_names import SIDES
from motion.skeleton.tree import Skeleton, forward_kinematics

# Parts whose bones point elsewhere because of their shape, and not because of the pose.
SHAPED = ("hips", "head", *(f"{side}_{part}" for side in SIDES for part in ("foot", "toes")))
# So many bones of one joint have a shape: angles to each other, which are the same up to so many
# degrees.
FEWEST_OF_SHAPE, SAME_SHAPE = 3, 1.0
# Degrees between two rest poses of the same kind.
ALIKE = 35.0
# Parts that point down in rest poses in which a person stands, and degrees that they may differ.
LEGS = tuple(f"{side}_{part}" for side in SIDES for part in ("upper_leg", "lower_leg"))
STANDING = 45.0
# Bones of one joint lie on a line if the second singular value of their directions is so small a
# share of the first.
ONE_LINE = 0.01
# Shorter bones have no direction, metres.
SHORTEST = 1e-6


def align_rest_poses(source: Skeleton, target: Skeleton, pairs: Sequence[int | None]) -> Tensor:
    """Returns a rotation ``(J, 3, 3)`` for each joint of the target.

    It turns directions of the target in its rest pose to directions of the source in its rest pose.
    The rotation of one joint makes its bones parallel to the bones of the source, as far as it can,
    and begins with the rotation of the joint above. Hips, head and feet have other shapes in other
    skeletons, so they keep the rotation of the whole body, if the rest poses are alike. Where three
    bones or more of such a joint have the same shape, as of hips with legs and spine, their rest
    pose alone differs, so they become parallel too. Exchanging source and target gives the inverse
    rotations.

    Args:
        pairs: for each joint of the target the joint of the source; None without one.
    """
    parts, bones = find_parts(target), pair_bones(source, target, pairs)
    body = align_bodies(rest_positions(source), rest_positions(target), parts, pairs)
    legs = [bone for part, own in zip(parts, bones, strict=True) if part in LEGS for bone in own]
    # Where legs point elsewhere, a rest pose is none in which a person stands.
    known = body is not None and all(
        angle_of(body @ bone.target, bone.source) < STANDING for bone in legs
    )
    first = body if body is not None and known else torch.eye(3, dtype=torch.float64)
    aligned = torch.empty(target.joints, 3, 3, dtype=torch.float64)
    for joint, parent in enumerate(target.parents):
        before = aligned[parent] if parent >= 0 else first
        aligned[joint] = turn_bones(bones[joint], before)
        shaped = known and parts[joint] in SHAPED and not have_one_shape(bones[joint])
        if shaped and angle_between(aligned[joint], first) < ALIKE:
            aligned[joint] = first
    return aligned


class Bone(NamedTuple):
    """The direction (3,) of a bone in two rest poses, in metres."""

    source: Tensor
    target: Tensor


def pair_bones(source: Skeleton, target: Skeleton, pairs: Sequence[int | None]) -> list[list[Bone]]:
    """Returns the bones below each joint of the target that the source has too."""
    own, wanted = rest_positions(source), rest_positions(target)
    places = {pair: joint for joint, pair in enumerate(pairs) if pair is not None}
    below = find_below(target, pairs)
    below_source = find_below(source, [places.get(joint) for joint in range(source.joints)])
    bones = []
    for joint, pair in enumerate(pairs):
        found = []
        if pair is not None:
            found = [
                Bone(reach(own, below_source, pair, end), reach(wanted, below, joint, places[end]))
                for end in below_source[pair]
                if places[end] in below[joint]
            ]
            found = found or pair_ends(source, target, pair, joint)
        bones.append([bone for bone in found if min(map(torch.norm, bone)) > SHORTEST])
    return bones


def reach(positions: Tensor, below: Sequence[Sequence[int]], joint: int, end: int) -> Tensor:
    """Returns the vector (3,) from a joint to one below it, or further if they are in one place.

    Args:
        positions: ``(J, 3)``, metres.
        below: the joints to go on to, see ``find_below``.
    """
    while (positions[end] - positions[joint]).norm() <= SHORTEST and below[end]:
        end = below[end][0]
    return positions[end] - positions[joint]


def rest_positions(skeleton: Skeleton) -> Tensor:
    """Returns the positions ``(J, 3)`` of the joints in the rest pose, from the root."""
    still = torch.eye(3, dtype=torch.float64).expand(skeleton.joints, 3, 3)
    return forward_kinematics(skeleton, still, still.new_zeros(3)).positions


def find_below(skeleton: Skeleton, pairs: Sequence[int | None]) -> list[list[int]]:
    """Returns for each joint the nearest joints below it that have a pair."""
    below: list[list[int]] = [[] for _ in pairs]
    for joint in reversed(range(1, len(pairs))):
        found = below[joint] if pairs[joint] is None else [joint]
        below[skeleton.parents[joint]] += found
    return below


def pair_ends(source: Skeleton, target: Skeleton, pair: int, joint: int) -> list[Bone]:
    """Returns the directions of the end sites of two joints, if both have some."""
    ends = [
        [site.offset for site in skeleton.end_sites if site.joint == place]
        for skeleton, place in ((source, pair), (target, joint))
    ]
    if not all(ends):
        return []
    means = (torch.tensor(offsets, dtype=torch.float64).mean(dim=0) for offsets in ends)
    return [Bone(*means)]


def align_bodies(
    own: Tensor, wanted: Tensor, parts: Sequence[str], pairs: Sequence[int | None]
) -> Tensor | None:
    """Returns the rotation (3, 3) from the body of the target to the body of the source, at rest.

    None where the parts are not known that tell it.

    Args:
        own, wanted: ``(J, 3)``, the rest poses of source and target.
        parts: the parts of the target.
        pairs: the joints of the source, as for ``align_rest_poses``.
    """
    joints = [(part, pair, j) for j, (part, pair) in enumerate(zip(parts, pairs, strict=True))]
    places = (
        {part: own[pair] for part, pair, _ in joints if pair is not None},
        {part: wanted[j] for part, pair, j in joints if pair is not None},
    )
    frames = [find_body(place) for place in places]
    return None if frames[0] is None or frames[1] is None else frames[0] @ frames[1].T


def find_body(places: Mapping[str, Tensor]) -> Tensor | None:
    """Returns the directions to the left, up and to the front of a body, as columns (3, 3).

    They are told by the directions from the feet to the shoulders and from right to left; None
    where these parts are not known, or are in one place.

    Args:
        places: (3,) of each part, metres.
    """

    def mean(*names: str) -> Tensor | None:
        found = [places[name] for name in names if name in places]
        return torch.stack(found).mean(dim=0) if found else None

    left, right = (mean(f"{side}_upper_leg", f"{side}_upper_arm") for side in SIDES)
    low = mean("left_foot", "right_foot") if "left_foot" in places else mean("hips")
    high = mean("left_upper_arm", "right_upper_arm")
    high = mean("neck1", "head") if high is None else high
    if left is None or right is None or low is None or high is None:
        return None
    up, across = high - low, left - right
    forward = torch.linalg.cross(across, up)
    if forward.norm() < SHORTEST * max(across.norm(), up.norm()):
        return None
    across = torch.linalg.cross(up, forward)
    return torch.stack([axis / axis.norm() for axis in (across, up, forward)], dim=1)


def turn_bones(bones: Sequence[Bone], before: Tensor) -> Tensor:
    """Returns the rotation (3, 3) that turns the bones of a joint to where the source has them.

    Args:
        bones: the bones below the joint.
        before: the rotation of the joint above, which tells the turn around a line of bones.
    """
    if not bones:
        return before
    source, target = (
        torch.stack([vector / vector.norm() for vector in vectors])
        for vectors in zip(*bones, strict=True)
    )
    u, sizes, v = torch.linalg.svd(source.T @ target)
    if sizes[1] > ONE_LINE * sizes[0]:
        flip = torch.ones(3, dtype=u.dtype)
        flip[2] = torch.linalg.det(u @ v).sign()
        return u @ torch.diag(flip) @ v
    return turn_onto(before @ v[0], u[:, 0]) @ before


def have_one_shape(bones: Sequence[Bone]) -> bool:
    """Whether the bones of a joint have the same angles to each other in both rest poses.

    Fewer than three bones nearly always do, so they do not tell.
    """
    return len(bones) >= FEWEST_OF_SHAPE and all(
        abs(angle_of(one.source, other.source) - angle_of(one.target, other.target)) < SAME_SHAPE
        for one, other in combinations(bones, 2)
    )


def turn_onto(one: Tensor, other: Tensor) -> Tensor:
    """Returns the smallest rotation (3, 3) that turns one direction (3,) onto another."""
    one, other = one / one.norm(), other / other.norm()
    cross, cosine = torch.linalg.cross(one, other), one @ other
    if cosine < -1 + 1e-9:  # any axis across will do
        axis = torch.linalg.cross(one, torch.eye(3, dtype=one.dtype)[one.abs().argmin()])
        axis = axis / axis.norm()
        return 2 * torch.outer(axis, axis) - torch.eye(3, dtype=one.dtype)
    x, y, z = cross.tolist()
    skew = one.new_tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return torch.eye(3, dtype=one.dtype) + skew + skew @ skew / (1 + cosine)


def angle_of(one: Tensor, other: Tensor) -> float:
    """Returns the angle between two vectors (3,) in degrees."""
    cosine = (one @ other / one.norm() / other.norm()).item()
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def angle_between(one: Tensor, other: Tensor) -> float:
    """Returns the angle between two rotations (3, 3) in degrees."""
    cosine = ((one.T @ other).trace().item() - 1) / 2
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
