"""The joints of HumanML3D in motion of other skeletons."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from motion.errors import MotionError
from motion.metrics import joint_distances
from motion.skeleton.body_parts import find_parts
from motion.skeleton.clip import MotionClip, resample
from motion.skeleton.inverse_kinematics import find_clip, find_offsets, to_local
from motion.skeleton.packaged import HUMANML3D, KIT
from motion.skeleton.tree import Skeleton
from wanvae.engine.text import first_few

# Degrees between the same bone of two skeletons that rest in the same pose; only bones longer than
# so many metres count.
SAME_REST, LONG_BONE = 40.0, 0.2
SPINE = re.compile(r"spine\d+")


@dataclass(frozen=True, kw_only=True, eq=False)
class JointMotion:
    """Motion of the joints of HumanML3D or KIT.

    Attributes:
        positions: (T, J, 3), where the joints are, metres, y up.
        clip: the motion as rotations.
        by_kinematics: whether the rotations come from the positions by inverse kinematics. They
            do not tell how bones turn about themselves.
    """

    positions: Tensor
    clip: MotionClip
    by_kinematics: bool

    @property
    def distances(self) -> Tensor:
        """The distances (T, J) in millimetres of the joints of ``clip`` from ``positions``."""
        return joint_distances(self.clip.pose.positions, self.positions)

    def at_rate(self, fps: float) -> JointMotion:
        """Returns the motion at another frame rate, by its rotations."""
        if fps == self.clip.fps:
            return self
        clip = resample(self.clip, fps)
        return replace(self, positions=clip.pose.positions, clip=clip)


def select_joints(clip: MotionClip) -> JointMotion:
    """Returns the motion of the 22 joints of HumanML3D, which are the first joints of SMPL bodies.

    Joints are found by their names. Rotations of an SMPL body are kept. For any other skeleton they
    come from inverse kinematics, because other rest poses give rotations another meaning. A clip of
    the 21 joints of KIT stays as it is.

    Raises:
        MotionError: a joint is missing.
    """
    skeleton, pose = clip.skeleton, clip.pose
    if skeleton.names == KIT.names:
        return JointMotion(positions=pose.positions, clip=clip, by_kinematics=False)
    order = list(find_humanml3d_joints(skeleton))
    positions, turned = pose.positions[:, order], pose.rotations[:, order]
    own = find_offsets(HUMANML3D, positions, turned)
    smpl = tuple(skeleton.names[joint] for joint in order) == HUMANML3D.names
    if not smpl or not rests_like(own, HUMANML3D):
        found = find_clip(positions, HUMANML3D, clip.fps)
        return JointMotion(positions=positions, clip=found, by_kinematics=True)
    offsets = (skeleton.offsets[0], *own.offsets[1:])
    selected = replace(
        clip,
        skeleton=replace(own, offsets=offsets, unit=skeleton.unit),
        rotations=to_local(HUMANML3D, turned),
        expressions=None,
    )
    return JointMotion(positions=positions, clip=selected, by_kinematics=False)


def rests_like(own: Skeleton, other: Skeleton) -> bool:
    """Whether long bones of two skeletons with the same joints point the same way at rest."""
    bones, others = (torch.tensor(skeleton.offsets)[1:] for skeleton in (own, other))
    angles = torch.cosine_similarity(bones, others, dim=1).clamp(-1, 1).arccos()
    return bool((angles[others.norm(dim=1) > LONG_BONE] < math.radians(SAME_REST)).all())


def find_humanml3d_joints(skeleton: Skeleton) -> tuple[int, ...]:
    """Returns the indices of the 22 joints of HumanML3D, in their order.

    Joints are found by their own names, else by the parts of the body that names of other programs
    stand for. Of a spine of more than three joints the first, the middle and the last are taken.

    Raises:
        MotionError: a joint is missing.
    """
    if set(HUMANML3D.names) <= set(skeleton.names):
        return tuple(map(skeleton.names.index, HUMANML3D.names))
    parts = {part: joint for joint, part in enumerate(find_parts(skeleton))}
    spine = [joint for part, joint in parts.items() if SPINE.fullmatch(part)]
    if len(spine) >= 3:
        thirds = (spine[0], spine[len(spine) // 2], spine[-1])
        parts |= {f"spine{number}": joint for number, joint in enumerate(thirds, start=1)}
    wanted = dict(zip(HUMANML3D.names, find_parts(HUMANML3D), strict=True))
    missing = [name for name, part in wanted.items() if part not in parts]
    if missing:
        raise MotionError(
            f"no joints are known by their names as {first_few(missing)}, which HumanML3D needs"
        )
    return tuple(parts[part] for part in wanted.values())
