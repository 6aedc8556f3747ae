"""Motion of one skeleton as motion of another one, by the rotations of joints.

Joints are paired by the parts of the body that they are. The bones of the target point where the
bones of the source point in the world, whatever the two rest poses are. Head and feet, whose bones
differ between skeletons more than bodies do, look and stand in the rest pose of the target as in
the rest pose of the source, if both are alike. Joints that only the source has are composed into
the joints below them, joints that only the target has stay at rest. The path is scaled by the
length of the legs, and feet stay on the ground as in the source
(see :mod:`motion.skeleton.grounding`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from motion.errors import MotionError
from motion.skeleton.body_frames import SHORTEST
from motion.skeleton.body_parts import find_parts, is_of
from motion.skeleton.clip import MotionClip
from motion.skeleton.grounding import (
    FeetReport,
    choose_anchor,
    find_walker,
    follow_ground,
    scale_path,
)
from motion.skeleton.joint_names import SIDES
from motion.skeleton.rest_pose import align_rest_poses
from motion.skeleton.tree import Skeleton, forward_kinematics


@dataclass(frozen=True, eq=False)
class Retargeting:
    """How motion of one skeleton becomes motion of another one.

    Attributes:
        source, target: the skeletons.
        pairs: for each joint of the target the joint of the source; None without one.
        alignments: ``(J, 3, 3)``, for each joint of the target the rotation from its directions in
            the rest pose to the directions of the source in its rest pose.
        scale: the length of the legs of the target, divided by the length of the legs of the
            source.
    """

    source: Skeleton
    target: Skeleton
    pairs: tuple[int | None, ...]
    alignments: Tensor
    scale: float

    @property
    def at_rest(self) -> tuple[str, ...]:
        """The names of the joints of the target that stay at rest."""
        return tuple(
            name for name, pair in zip(self.target.names, self.pairs, strict=True) if pair is None
        )

    def rotate(self, clip: MotionClip) -> Tensor:
        """Returns the rotations ``(T, J, 3, 3)`` of the target, each in the axes of its parent."""
        world = clip.pose.rotations
        alignments = self.alignments.to(world)
        still = torch.eye(3).to(world).expand(len(clip), 3, 3)
        turned: list[Tensor] = []
        local = []
        for joint, (pair, parent) in enumerate(zip(self.pairs, self.target.parents, strict=True)):
            above = turned[parent] if parent >= 0 else still
            turned.append(above if pair is None else world[:, pair] @ alignments[joint])
            local.append(above.mT @ turned[-1])
        return torch.stack(local, dim=1)


def plan_retargeting(source: Skeleton, target: Skeleton) -> Retargeting:
    """Pairs the joints of two skeletons, and aligns their rest poses.

    Raises:
        MotionError: hips and legs, or hips and arms, are not known by their names in both, or all
            joints of a skeleton are in one place.
    """
    for skeleton in (source, target):
        if skeleton.span <= SHORTEST:
            raise MotionError(
                f"the bones of a skeleton have no length: {', '.join(skeleton.names[:8])} ... are "
                "in one place, so nothing tells its rest pose"
            )
    pairs = pair_joints(source, target)
    parts = find_parts(target)
    known = {part for part, pair in zip(parts, pairs, strict=True) if pair is not None}
    limbs = [{f"{side}_upper_{limb}" for side in SIDES} for limb in ("leg", "arm")]
    if "hips" not in known or not any(known >= limb for limb in limbs):
        raise MotionError(
            "motion cannot be moved to another skeleton, because hips and legs, or hips and arms, "
            f"are not known by name in both: {', '.join(source.names[:8])} ... and "
            f"{', '.join(target.names[:8])} ..."
        )
    return Retargeting(
        source=source,
        target=target,
        pairs=pairs,
        alignments=align_rest_poses(source, target, pairs),
        scale=compare_legs(source, target, pairs),
    )


def retarget(clip: MotionClip, target: Skeleton) -> MotionClip:
    """Returns the motion of a clip as motion of another skeleton.

    Raises:
        MotionError: as ``plan_retargeting``.
    """
    return retarget_with_report(clip, target).clip


@dataclass(frozen=True)
class Retargeted:
    """Motion that was moved to another skeleton.

    Attributes:
        clip: the motion of the target.
        plan: how it was moved.
        feet: what its feet do; None if the names of the joints do not tell the feet.
    """

    clip: MotionClip
    plan: Retargeting
    feet: FeetReport | None


def retarget_with_report(clip: MotionClip, target: Skeleton) -> Retargeted:
    """Returns the motion of a clip as motion of another skeleton, and how well feet stand.

    Raises:
        MotionError: as ``plan_retargeting``.
    """
    plan = plan_retargeting(clip.skeleton, target)
    rotations = plan.rotate(clip)
    pose = forward_kinematics(target, rotations, rotations.new_zeros(len(clip), 3))
    hips = find_parts(target).index("hips")
    pair = plan.pairs[hips]
    assert pair is not None
    anchor, report = choose_anchor(clip.skeleton, target), None
    if anchor is None:
        path = scale_path(clip.pose.positions[:, pair], plan.scale, 0.0)
    else:
        source = find_walker(clip.skeleton, clip.pose, pair, anchor)
        moved = find_walker(target, pose, hips, anchor)
        path, report = follow_ground(source, moved, plan.scale, clip.fps)
    root_positions = path - pose.positions[:, hips]
    clip = replace(clip, skeleton=target, rotations=rotations, root_positions=root_positions)
    return Retargeted(replace(clip, betas=()), plan, report)


def pair_joints(source: Skeleton, target: Skeleton) -> tuple[int | None, ...]:
    """Returns the joint of the source for each joint of the target; None without one.

    Spines and necks of different numbers of joints are paired from above.
    """
    own, wanted = find_parts(source), find_parts(target)
    places = {part: joint for joint, part in enumerate(own)}
    pairs = {part: places.get(part) for part in wanted}
    for chain in ("spine", "neck"):
        counts = [sum(is_of(part, chain) for part in parts) for parts in (own, wanted)]
        fewer = min(counts)
        for n in range(1, counts[1] + 1):
            pairs[f"{chain}{n}"] = None
        for n in range(1, fewer + 1):
            # The same places in the longer chain, whichever of the two it is.
            of_source, of_target = (-(-n * count // fewer) for count in counts)
            pairs[f"{chain}{of_target}"] = places[f"{chain}{of_source}"]
    return tuple(pairs[part] for part in wanted)


def compare_legs(source: Skeleton, target: Skeleton, pairs: Sequence[int | None]) -> float:
    """Returns the length of the legs of the target, divided by the length in the source.

    Without legs in both these are the lengths of all bones that both have.
    """
    parts = find_parts(target)
    chains = [f"{side}_{part}" for side in SIDES for part in ("lower_leg", "foot")]
    joints = [parts.index(part) for part in chains if part in parts]
    legs = [joint for joint in joints if pairs[joint] is not None]
    bones = legs or [joint for joint, pair in enumerate(pairs) if pair]
    lengths = [0.0, 0.0]
    for joint in bones:
        pair = pairs[joint]
        assert pair is not None
        lengths[0] += math.hypot(*source.offsets[pair])
        lengths[1] += math.hypot(*target.offsets[joint])
    return lengths[1] / lengths[0] if all(lengths) else 1.0
