"""A piece of motion: a skeleton, and how its joints turn from frame to frame."""

from __future__ import annotations

from dataclasses import dataclass, replace

import roma
import torch
from torch import Tensor

from motion.errors import MotionError
from motion.skeleton.tree import Pose, Skeleton, forward_kinematics


@dataclass(frozen=True, kw_only=True, eq=False)
class MotionClip:
    """Motion of T frames of a skeleton of J joints, in metres, with y up.

    Attributes:
        skeleton: whose joints move.
        rotations: (T, J, 3, 3), each from the axes of a joint to those of its parent.
        root_positions: (T, 3), metres in the world.
        fps: frames per second.
        betas: the shape of an SMPL-X body, for files that have one; empty for others.
        gender: of an SMPL-X body.
    """

    skeleton: Skeleton
    rotations: Tensor
    root_positions: Tensor
    fps: float
    betas: tuple[float, ...] = ()
    gender: str = "neutral"

    def __post_init__(self) -> None:
        expected = (len(self.rotations), self.skeleton.joints, 3, 3)
        if self.rotations.shape != expected:
            raise MotionError(f"rotations are {tuple(self.rotations.shape)}, not {expected}")
        if self.root_positions.shape != (expected[0], 3):
            shape = tuple(self.root_positions.shape)
            raise MotionError(f"root_positions are {shape}, not {(expected[0], 3)}")
        if not expected[0]:
            raise MotionError("a clip has no frames; give at least one")
        if not 0 < self.fps < float("inf"):
            raise MotionError(f"fps is {self.fps}; it must be positive")

    def __len__(self) -> int:
        """T, the number of frames."""
        return len(self.rotations)

    @property
    def start(self) -> tuple[float, ...]:
        """(x, z) of the root in the first frame, metres."""
        return tuple(self.root_positions[0, [0, 2]].tolist())

    @property
    def pose(self) -> Pose:
        """Joints in the world: positions (T, J, 3) in metres, rotations (T, J, 3, 3)."""
        return forward_kinematics(self.skeleton, self.rotations, self.root_positions)

    def __getitem__(self, frames: slice) -> MotionClip:
        """Some of the frames, in memory of their own, so that the others can be forgotten."""
        return replace(
            self,
            rotations=self.rotations[frames].clone(),
            root_positions=self.root_positions[frames].clone(),
        )


def resample(clip: MotionClip, fps: float) -> MotionClip:
    """The clip at another frame rate, over the same time: SLERP for rotations, lines for the root.

    The first frame stays; the last is the last whole one within the clip's time.
    """
    if not 0 < fps < float("inf"):
        raise MotionError(f"fps is {fps}; it must be positive")
    # A hair more, or rounding would cost the last frame where the rates are multiples.
    frames = int((len(clip) - 1) * fps / clip.fps + 1e-6) + 1
    times = torch.arange(frames, dtype=torch.float64) * (clip.fps / fps)
    before = times.floor().long().clamp(max=max(len(clip) - 2, 0))
    after = (before + 1).clamp(max=len(clip) - 1)
    share = (times - before).clamp(0, 1).to(clip.rotations)
    start = clip.rotations[before]
    turn = roma.rotmat_to_rotvec(start.mT @ clip.rotations[after])
    rotations = start @ roma.rotvec_to_rotmat(share[:, None, None] * turn)
    positions = torch.lerp(clip.root_positions[before], clip.root_positions[after], share[:, None])
    return replace(clip, rotations=rotations, root_positions=positions, fps=float(fps))


def from_file_axes(clip: MotionClip) -> MotionClip:
    """The clip with y up, of one whose world is that of its file (``clip.skeleton.up``)."""
    return turned(clip, upright(clip))


def to_file_axes(clip: MotionClip) -> MotionClip:
    """The inverse of ``from_file_axes``."""
    return turned(clip, upright(clip).T)


def upright(clip: MotionClip) -> Tensor:
    """The rotation (3, 3) from the axes of the file to those with y up; x stays."""
    rows = [[1, 0, 0], [0, 0, 1], [0, -1, 0]] if clip.skeleton.up == "z" else torch.eye(3).tolist()
    return clip.rotations.new_tensor(rows)


def turned(clip: MotionClip, rotation: Tensor) -> MotionClip:
    """The clip in a world turned by ``rotation`` (3, 3)."""
    rotations = clip.rotations.clone()
    rotations[:, 0] = rotation @ rotations[:, 0]
    return replace(clip, rotations=rotations, root_positions=clip.root_positions @ rotation.T)
