"""The 22 joints of HumanML3D in other skeletons."""

from __future__ import annotations

from dataclasses import replace

from motion.errors import MotionError
from motion.skeleton.clip import MotionClip
from motion.skeleton.inverse_kinematics import find_clip, find_offsets, to_local
from motion.skeleton.packaged import HUMANML3D
from motion.skeleton.tree import Skeleton


def select_humanml3d(clip: MotionClip) -> MotionClip:
    """Returns the motion of the 22 joints of HumanML3D, which are the first joints of SMPL bodies.

    Joints are found by their names. The joints are where they were. If the clip is not of an SMPL
    body, rotations come from these places by inverse kinematics, because other rest poses give
    rotations another meaning.

    Raises:
        MotionError: a joint is missing.
    """
    skeleton, order = clip.skeleton, list(find_humanml3d_joints(clip.skeleton))
    pose = clip.pose
    positions, turned = pose.positions[:, order], pose.rotations[:, order]
    if tuple(skeleton.names[joint] for joint in order) != HUMANML3D.names:
        return replace(find_clip(positions, HUMANML3D, clip.fps), betas=clip.betas)
    own = find_offsets(HUMANML3D, positions, turned)
    return replace(
        clip,
        skeleton=replace(own, offsets=(skeleton.offsets[0], *own.offsets[1:]), unit=skeleton.unit),
        rotations=to_local(HUMANML3D, turned),
        expressions=None,
    )


def find_humanml3d_joints(skeleton: Skeleton) -> tuple[int, ...]:
    """Returns the indices of the 22 joints of HumanML3D, in their order.

    Raises:
        MotionError: a joint is missing.
    """
    missing = [name for name in HUMANML3D.names if name not in skeleton.names]
    if missing:
        raise MotionError(f"the skeleton has no joints {', '.join(missing)}, which HumanML3D needs")
    return tuple(map(skeleton.names.index, HUMANML3D.names))
