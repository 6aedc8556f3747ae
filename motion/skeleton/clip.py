"""Motion: a skeleton, and the rotations of its joints in each frame."""

from __future__ import annotations

from dataclasses import dataclass, replace

import roma
import torch
from torch import Tensor

from motion.errors import MotionError
from motion.skeleton.tree import Pose, Skeleton, forward_kinematics


@dataclass(frozen=True, kw_only=True, eq=False)
class MotionClip:
    """T frames of motion of a skeleton with J joints, in metres, with y up.

    Attributes:
        skeleton: the skeleton that moves.
        rotations: (T, J, 3, 3); each turns vectors from the axes of a joint to the axes of its
            parent.
        root_positions: (T, 3), metres in the world.
        fps: frames per second.
        betas: the shape parameters of SMPL-X, if the file has them; else empty.
        gender: the gender in an SMPL-X file.
        expressions: (T, E), the facial expressions of a BEAT2 file; None without them.

    Raises:
        MotionError: shapes do not match, there are no frames, or ``fps`` is not positive.
    """

    skeleton: Skeleton
    rotations: Tensor
    root_positions: Tensor
    fps: float
    betas: tuple[float, ...] = ()
    gender: str = "neutral"
    expressions: Tensor | None = None

    def __post_init__(self) -> None:
        expected = (len(self.rotations), self.skeleton.joints, 3, 3)
        if self.rotations.shape != expected:
            raise MotionError(f"rotations are {tuple(self.rotations.shape)}, not {expected}")
        if self.root_positions.shape != (expected[0], 3):
            shape = tuple(self.root_positions.shape)
            raise MotionError(f"root_positions are {shape}, not {(expected[0], 3)}")
        if self.expressions is not None and len(self.expressions) != expected[0]:
            raise MotionError(
                f"expressions are of {len(self.expressions)}, not {expected[0]} frames"
            )
        if not expected[0]:
            raise MotionError("a motion has no frames; give at least one")
        if not 0 < self.fps < float("inf"):
            raise MotionError(f"fps is {self.fps}; it must be positive")

    def __len__(self) -> int:
        """Returns T, the number of frames."""
        return len(self.rotations)

    @property
    def start(self) -> tuple[float, ...]:
        """The position (x, z) of the root in the first frame, metres."""
        return tuple(self.root_positions[0, [0, 2]].tolist())

    @property
    def pose(self) -> Pose:
        """The joints in the world: positions (T, J, 3) in metres, rotations (T, J, 3, 3)."""
        return forward_kinematics(self.skeleton, self.rotations, self.root_positions)

    def __getitem__(self, frames: slice) -> MotionClip:
        """Returns some of the frames as a copy, so that the memory of the others can be freed."""
        return replace(
            self,
            rotations=self.rotations[frames].clone(),
            root_positions=self.root_positions[frames].clone(),
            expressions=None if self.expressions is None else self.expressions[frames].clone(),
        )


def resample(clip: MotionClip, fps: float) -> MotionClip:
    """Returns the clip at another frame rate, over the same time.

    Rotations are interpolated by SLERP, positions and expressions linearly. The first frame stays.
    The last frame is the last one that lies within the time of the clip.

    Raises:
        MotionError: ``fps`` is not positive.
    """
    if not 0 < fps < float("inf"):
        raise MotionError(f"fps is {fps}; it must be positive")
    # The small addition keeps rounding from losing the last frame if the rates are multiples.
    frames = int((len(clip) - 1) * fps / clip.fps + 1e-6) + 1
    times = torch.arange(frames, dtype=torch.float64) * (clip.fps / fps)
    before = times.floor().long().clamp(max=max(len(clip) - 2, 0))
    after = (before + 1).clamp(max=len(clip) - 1)
    share = (times - before).clamp(0, 1).to(clip.rotations)
    start = clip.rotations[before]
    turn = roma.rotmat_to_rotvec(start.mT @ clip.rotations[after])
    rotations = start @ roma.rotvec_to_rotmat(share[:, None, None] * turn)

    def interpolate(values: Tensor) -> Tensor:
        return torch.lerp(values[before], values[after], share[:, None])

    return replace(
        clip,
        rotations=rotations,
        root_positions=interpolate(clip.root_positions),
        expressions=None if clip.expressions is None else interpolate(clip.expressions),
        fps=float(fps),
    )


def from_file_axes(clip: MotionClip) -> MotionClip:
    """Turns a clip with the axes of its file (``clip.skeleton.up``) so that y points up."""
    return turn_world(clip, find_upright_rotation(clip))


def to_file_axes(clip: MotionClip) -> MotionClip:
    """Turns a clip with y up to the axes of its file; the inverse of ``from_file_axes``."""
    return turn_world(clip, find_upright_rotation(clip).T)


def find_upright_rotation(clip: MotionClip) -> Tensor:
    """Returns the rotation (3, 3) from the axes of the file to axes with y up; x stays."""
    rows = [[1, 0, 0], [0, 0, 1], [0, -1, 0]] if clip.skeleton.up == "z" else torch.eye(3).tolist()
    return clip.rotations.new_tensor(rows)


def turn_world(clip: MotionClip, rotation: Tensor) -> MotionClip:
    """Returns the clip in a world turned by ``rotation`` (3, 3)."""
    rotations = clip.rotations.clone()
    rotations[:, 0] = rotation @ rotations[:, 0]
    return replace(clip, rotations=rotations, root_positions=clip.root_positions @ rotation.T)
