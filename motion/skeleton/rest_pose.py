"""How two rest poses differ: the rotation of each joint that makes their bones parallel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import roma
import torch
from torch import Tensor

from motion.skeleton.body_frames import SHORTEST, STANDING, BodyTurns, align_bodies, turn_between
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
# Parts that point down in rest poses in which a person stands.
LEGS = tuple(f"{side}_{part}" for side in SIDES for part in ("upper_leg", "lower_leg"))
FEET = tuple(f"{side}_foot" for side in SIDES)
# Bones of one joint lie on a line if the second singular value of their directions is so small a
# share of the first.
ONE_LINE = 0.01
# Degrees by which one direction is surely nearer than another one, whatever files round.
SURE = 0.1
# Lengths of two bones are the same up to so large a share of them, and of the longest one, as files
# round them.
SAME_LENGTH, ROUNDED = 0.01, 0.002


def align_rest_poses(source: Skeleton, target: Skeleton, pairs: Sequence[int | None]) -> Tensor:
    """Returns a rotation ``(J, 3, 3)`` for each joint of the target.

    It turns directions of the target in its rest pose to directions of the source in its rest pose.
    The rotation of one joint makes its bones parallel to the bones of the source, as far as it can.
    It begins with the rotation of the joint above, or, at hips, legs, feet, spine and head, with
    how these are turned (see :mod:`motion.skeleton.body_frames`). Hips, head and feet have other
    shapes in other skeletons, so they stay with what they begin with, if the rest poses are alike.
    Where three bones or more of such a joint have the same shape, as of hips with legs and spine,
    or all bones of the skeletons have the same lengths, the rest poses alone differ, so the bones
    become parallel too. Exchanging source and target gives the inverse rotations.

    Args:
        pairs: for each joint of the target the joint of the source; None without one.
    """
    parts, bones = find_parts(target), pair_bones(source, target, pairs)
    same = have_one_size(bones)
    turns = align_standing(source, target, parts, pairs, bones, same=same)
    known = [part for part, pair in zip(parts, pairs, strict=True) if pair is not None]
    begins = {} if turns is None else turns.begin(known)
    first = torch.eye(3, dtype=torch.float64) if turns is None else turns.body
    aligned = torch.empty(target.joints, 3, 3, dtype=torch.float64)
    for joint, (part, parent) in enumerate(zip(parts, target.parents, strict=True)):
        above = aligned[parent] if parent >= 0 else first
        before = begins.get(part, above)
        if same and part in FEET:
            before = choose_nearer(bones[joint], before, above)
        aligned[joint] = turn_bones(bones[joint], before)
        shaped = turns is not None and part in SHAPED and not same
        if shaped and not have_one_shape(bones[joint]):
            alike = angle_between(aligned[joint], before) < ALIKE
            aligned[joint] = before if alike else aligned[joint]
    return aligned


def choose_nearer(bones: Sequence[Bone], one: Tensor, other: Tensor) -> Tensor:
    """Returns the rotation (3, 3) that turns bones nearer to where the source has them.

    It is the first one if both turn them about alike: what lies along a bone does not tell.
    """

    def miss(turn: Tensor) -> float:
        return max((angle_of(turn @ bone.target, bone.source) for bone in bones), default=0.0)

    return one if miss(one) < miss(other) + SURE else other


def align_standing(
    source: Skeleton,
    target: Skeleton,
    parts: Sequence[str],
    pairs: Sequence[int | None],
    bones: Sequence[Sequence[Bone]],
    *,
    same: bool,
) -> BodyTurns | None:
    """Returns how two bodies are turned in their rest poses; None if no person stands in them.

    Args:
        parts: the parts of the target.
        pairs: as for ``align_rest_poses``.
        bones: as ``pair_bones`` returns them.
        same: whether the bodies differ by their rest poses alone.
    """
    places: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    rests = rest_positions(source), rest_positions(target)
    for joint, (part, pair) in enumerate(zip(parts, pairs, strict=True)):
        if pair is None:
            continue
        for skeleton, rest, place, own in zip(
            (source, target), rests, places, (pair, joint), strict=True
        ):
            place[part] = rest[own]
            if part in FEET:  # until toes tell it, which may be known in one skeleton only
                tip = find_tip(skeleton, rest, own)
                place |= {} if tip is None else {part.replace("_foot", "_toes"): tip}
    turns = align_bodies(*places, same=same)
    legs = [bone for part, own in zip(parts, bones, strict=True) if part in LEGS for bone in own]
    # Where legs point elsewhere, a rest pose is none in which a person stands.
    if turns is None or any(
        angle_of(turns.body @ bone.target, bone.source) >= STANDING for bone in legs
    ):
        return None
    return turns


def find_tip(skeleton: Skeleton, rest: Tensor, joint: int) -> Tensor | None:
    """Returns where the bones of a joint end on average (3,): joints or ends; None without one.

    Args:
        rest: ``(J, 3)``, as ``rest_positions`` returns it.
    """
    ends = [rest[child] for child in skeleton.children[joint]]
    ends += [rest[joint] + offset for offset in find_ends(skeleton, joint)]
    return torch.stack(ends).mean(dim=0) if ends else None


def find_ends(skeleton: Skeleton, joint: int) -> list[Tensor]:
    """Returns the offsets (3,) of the end sites of a joint."""
    sites = (site.offset for site in skeleton.end_sites if site.joint == joint)
    return [torch.tensor(offset, dtype=torch.float64) for offset in sites]


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
    ends = find_ends(source, pair), find_ends(target, joint)
    if not all(ends):
        return []
    return [Bone(*(torch.stack(offsets).mean(dim=0) for offsets in ends))]


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
    return roma.rotvec_to_rotmat(turn_between(before @ v[0], u[:, 0])) @ before


def have_one_shape(bones: Sequence[Bone]) -> bool:
    """Whether the bones of a joint have the same angles to each other in both rest poses.

    Fewer than three bones nearly always do, so they do not tell.
    """
    return len(bones) >= FEWEST_OF_SHAPE and all(
        abs(angle_of(one.source, other.source) - angle_of(one.target, other.target)) < SAME_SHAPE
        for one, other in combinations(bones, 2)
    )


def have_one_size(bones: Sequence[Sequence[Bone]]) -> bool:
    """Whether the bones of one skeleton are all as long as in the other one, up to one scale."""
    lengths = torch.tensor(
        [[vector.norm().item() for vector in bone] for below in bones for bone in below]
    ).view(-1, 2)
    shares = lengths / lengths.sum(dim=0)
    # Shares of one body, so that neither its unit nor which of the two it is matters.
    allowed = SAME_LENGTH * shares.amax(dim=1) + ROUNDED * shares.max() if len(shares) else 0.0
    return bool((shares.diff(dim=1).abs().squeeze(dim=1) <= allowed).all())


def angle_of(one: Tensor, other: Tensor) -> float:
    """Returns the angle between two vectors (3,) in degrees."""
    cosine = (one @ other / one.norm() / other.norm()).item()
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def angle_between(one: Tensor, other: Tensor) -> float:
    """Returns the angle between two rotations (3, 3) in degrees."""
    cosine = ((one.T @ other).trace().item() - 1) / 2
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
