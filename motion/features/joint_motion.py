"""Motion of joints out of any file, as features that data sets and papers publish."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from motion.errors import MotionError
from motion.features.joint_features import extract_joint_features, to_kit_joints
from motion.features.motionstreamer import extract_streamer_features
from motion.features.published import NAMES, PUBLISHED, FeatureName
from motion.files.arrays import load_array, read_array
from motion.files.formats import read_motion
from motion.files.joints import RATES, SKELETONS, read_joints
from motion.files.reading import GUESSED, Reading
from motion.skeleton.inverse_kinematics import find_clip
from motion.skeleton.packaged import HUMANML3D
from motion.skeleton.selection import JointMotion, select_joints


def read_joint_motion(
    path: str | os.PathLike[str], reading: Reading = GUESSED, *, fps: float | None = None
) -> JointMotion:
    """Reads the motion of the joints of HumanML3D or KIT.

    Args:
        path: a motion file; or a .npy file of positions of joints, or of features of HumanML3D,
            KIT or MotionStreamer, not normalized.
        reading: what the file does not tell.
        fps: frames per second of a .npy file; by default as published for such joints or features.

    Raises:
        MotionError: the file cannot be read, or does not have these joints.
    """
    path = Path(path)
    if path.suffix.lower() != ".npy":
        return select_joints(read_motion(path, reading))
    shape = load_array(path).shape
    if len(shape) == 2 and shape[1] in PUBLISHED:
        return restore_features(path, fps)
    if len(shape) != 3 or shape[1] not in SKELETONS:
        widths = ", ".join(map(str, PUBLISHED))
        raise MotionError(
            f"{path} is {shape}; joints (T, 22, 3) of HumanML3D or (T, 21, 3) of KIT, or features "
            f"(T, D) with D of {widths} are needed"
        )
    positions, skeleton = read_joints(path, unit=reading.unit, up=reading.up)
    fps = RATES[skeleton.joints] if fps is None else fps
    clip = find_clip(positions, replace(skeleton, unit=1.0), fps)
    return JointMotion(positions=positions, clip=clip, by_kinematics=True)


def restore_features(path: Path, fps: float | None) -> JointMotion:
    """Returns the motion of a file of features, by rotations or inverse kinematics."""
    features = read_array(path, ndim=2).double()
    if not len(features):
        raise MotionError(f"{path} has no frames; get it again")
    kind = PUBLISHED[features.shape[1]]
    clip = kind.restore(features, kind.source)
    clip = clip if fps is None else replace(clip, fps=fps)
    return JointMotion(
        positions=kind.recover(features).positions,
        clip=clip,
        by_kinematics=kind.source == "positions",
    )


def extract_published(
    motion: JointMotion, name: FeatureName, *, target: Tensor | None = None
) -> Tensor:
    """Returns the features (T, D) of a motion, at the frame rate of such features, in float64.

    HumanML3D and KIT have a frame less than the motion.

    Args:
        motion: the motion.
        name: the features.
        target: (J, 3), joints whose bone lengths features of HumanML3D and KIT get, in metres; see
            ``extract_joint_features``.

    Raises:
        MotionError: the motion does not have the joints, or is too short; or ``target`` is given
            for other features, or has other joints.
    """
    kind = NAMES[name]
    motion = motion.at_rate(kind.fps)
    joints = motion.clip.skeleton.names
    if name == "272" and joints == HUMANML3D.names:
        if target is not None:
            raise MotionError(
                "features of MotionStreamer keep the lengths of bones; give no target"
            )
        return extract_streamer_features(motion.clip)
    positions = motion.positions.double()
    if name == "kit" and joints == HUMANML3D.names:
        positions = to_kit_joints(positions)
    if positions.shape[1] != kind.skeleton.joints:
        raise MotionError(
            f"the motion has the {positions.shape[1]} joints of KIT; features of {kind.title} need "
            f"the {kind.skeleton.joints} joints of HumanML3D"
        )
    return extract_joint_features(positions, target=target)


def read_target(path: str | os.PathLike[str], name: FeatureName) -> Tensor:
    """Reads the joints (J, 3) of the first frame of a file, whose bone lengths others can get.

    Args:
        path: a file that ``read_joint_motion`` reads, such as joints of the data set.
        name: the features that the lengths are for.

    Raises:
        MotionError: the file cannot be read, or has other joints.
    """
    pose = read_joint_motion(path).positions[:1].double()
    kind = NAMES[name]
    if name == "kit" and pose.shape[1] == HUMANML3D.joints:
        pose = to_kit_joints(pose)
    if pose.shape[1] != kind.skeleton.joints:
        raise MotionError(f"{path} has {pose.shape[1]} joints, not the joints of {kind.title}")
    return pose[0]
