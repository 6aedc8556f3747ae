"""Features of joints that data sets and papers publish. Their number of channels tells them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from torch import Tensor

from motion.features import humanml3d, motionstreamer
from motion.features.joint_features import recover_turned_positions
from motion.features.kinds import PUBLISHED_KINDS
from motion.features.rotations import from_rot6d
from motion.skeleton.clip import MotionClip
from motion.skeleton.inverse_kinematics import find_clip
from motion.skeleton.packaged import HUMANML3D, KIT
from motion.skeleton.tree import Pose, Skeleton

FeatureName: TypeAlias = Literal["humanml3d", "kit", "272"]
# What tells where joints are: the positions or the rotations of the features.
Source: TypeAlias = Literal["positions", "rotations"]


@dataclass(frozen=True, kw_only=True)
class PublishedFeatures:
    """What is known about features with a certain number of channels.

    Attributes:
        title: the data set or the paper, for people.
        channels: the number of channels, D.
        fps: frames per second.
        skeleton: the packaged skeleton with these joints.
        rotations: the channels of rotations, which are vectors of length 1, by three.
        positions: the channels of positions of joints.
        locate: returns the positions (..., T, J, 3) of features (..., T, D) in metres.
        recover: returns the positions (T, J, 3) of features (T, D) in metres, and rotations to the
            parents: (T, J, 3, 3), or (T, J - 1, 3, 3) without the root.
        restore: returns the clip of features (T, D), whose joints are where the source says.
        source: the source that gives the smaller errors.
    """

    title: str
    channels: int
    fps: float
    skeleton: Skeleton
    rotations: slice
    positions: slice
    locate: Callable[[Tensor], Tensor]
    recover: Callable[[Tensor], Pose]
    restore: Callable[[Tensor, Source], MotionClip]
    source: Source


def recover_joints(features: Tensor) -> Pose:
    """Returns the joints of features (T, D) of HumanML3D or KIT. The root has no rotation."""
    channels = humanml3d.rotation_channels(features.shape[1])
    rotations = from_rot6d(features[:, channels].unflatten(1, (-1, 6)), "columns")
    return Pose(humanml3d.recover_positions(features), rotations)


def restore_joints(features: Tensor, source: Source) -> MotionClip:
    """Returns the clip of features (T, D) of HumanML3D or KIT, by inverse kinematics.

    The rotations of these features are turns from fixed directions to bones, which tell where the
    joints are as the positions do, but not how bones are turned about themselves. So both sources
    need inverse kinematics. Positions give the smaller errors if the features are not exact.
    """
    skeleton = humanml3d.skeleton_of(features.shape[1])
    fps = PUBLISHED[features.shape[1]].fps
    positions = humanml3d.recover_positions(features)
    if source == "rotations":
        positions = recover_turned_positions(features, positions)
    return find_clip(positions, replace(skeleton, unit=1.0), fps)


def restore_streamer(features: Tensor, source: Source) -> MotionClip:
    """Returns the clip of features (T, 272); from positions by inverse kinematics."""
    if source == "rotations":
        return motionstreamer.restore_streamer_clip(features)
    positions = motionstreamer.recover_streamer_positions(features)
    return find_clip(positions, HUMANML3D, motionstreamer.FPS)


PUBLISHED = {
    **{
        channels: PublishedFeatures(
            title=PUBLISHED_KINDS[channels].title,
            channels=channels,
            fps=PUBLISHED_KINDS[channels].fps,
            skeleton=skeleton,
            rotations=humanml3d.rotation_channels(channels),
            positions=humanml3d.position_channels(channels),
            locate=humanml3d.recover_positions,
            recover=recover_joints,
            restore=restore_joints,
            source="positions",
        )
        for channels, skeleton in ((263, HUMANML3D), (251, KIT))
    },
    motionstreamer.CHANNELS: PublishedFeatures(
        title=PUBLISHED_KINDS[motionstreamer.CHANNELS].title,
        channels=motionstreamer.CHANNELS,
        fps=motionstreamer.FPS,
        skeleton=HUMANML3D,
        rotations=motionstreamer.ROTATIONS,
        positions=motionstreamer.POSITIONS,
        locate=motionstreamer.recover_streamer_positions,
        recover=motionstreamer.recover_streamer_pose,
        restore=restore_streamer,
        source="rotations",
    ),
}
NAMES: dict[FeatureName, PublishedFeatures] = {
    "humanml3d": PUBLISHED[263],
    "kit": PUBLISHED[251],
    "272": PUBLISHED[272],
}
