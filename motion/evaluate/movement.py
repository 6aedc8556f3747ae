"""How a reconstruction moves, beside its original: aligned errors, acceleration, jerk and feet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from motion.metrics import (
    SLIDING_SPEED,
    acceleration_errors,
    align_poses,
    align_roots,
    find_steps,
    ground_speed,
    joint_distances,
    joint_jerk,
)
from motion.skeleton.joint_names import find_feet


@dataclass(frozen=True, kw_only=True)
class MovementSummary:
    """Figures of the movement of a reconstruction. A figure is None if there is nothing to measure.

    Attributes:
        root_aligned_mpjpe_mm: mean distance of joints from their original positions, both relative
            to the root.
        procrustes_aligned_mpjpe_mm: the same after each frame is moved, turned and scaled onto its
            original, see :func:`~motion.metrics.align_poses`.
        acceleration_error_m_s2: mean error of the accelerations of joints, see
            :func:`~motion.metrics.acceleration_errors`.
        jerk_m_s3: mean jerk of the joints, see :func:`~motion.metrics.joint_jerk`.
        original_jerk_m_s3: mean jerk of the original, at the frame rate of the model.
        jerk_ratio: the jerk divided by the jerk of the original.
        foot_contacts: the number of contacts: a foot that is on the ground of the original in a
            frame and the next, see :func:`~motion.metrics.find_steps`; 0 if the names of the joints
            do not tell the feet.
        foot_speed_m_s: mean horizontal speed of feet in contact.
        original_foot_speed_m_s: the same for the original.
        sliding: the share of contacts in which the foot is faster than 0.5 m/s.
        original_sliding: the same for the original.
    """

    root_aligned_mpjpe_mm: float
    procrustes_aligned_mpjpe_mm: float
    acceleration_error_m_s2: float | None
    jerk_m_s3: float | None
    original_jerk_m_s3: float | None
    jerk_ratio: float | None
    foot_contacts: int
    foot_speed_m_s: float | None
    original_foot_speed_m_s: float | None
    sliding: float | None
    original_sliding: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class MovementSums:
    """Sums over the frames of recordings, in float64. The sums of several recordings can be added.

    Pairs ``(2,)`` are of the original and of the reconstruction.

    Attributes:
        frames: the number of frames.
        aligned: ``(2,)``, mean distances in millimetres, with roots aligned and with whole poses
            aligned.
        accelerations: ``(1,)``, mean errors of accelerations, in m/s^2.
        acceleration_frames: the number of frames with an acceleration; two frames of each recording
            have none.
        jerks: ``(2,)``, mean jerks of the joints, in m/s^3.
        jerk_frames: the number of frames with a jerk; three frames of each recording have none.
        contacts: how often a foot is on the ground in the original.
        speeds: ``(2,)``, horizontal speeds of the feet in contact, in m/s.
        slides: ``(2,)``, how often a foot in contact slides.
    """

    frames: int
    aligned: Tensor
    accelerations: Tensor
    acceleration_frames: int
    jerks: Tensor
    jerk_frames: int
    contacts: int
    speeds: Tensor
    slides: Tensor

    def __add__(self, other: MovementSums) -> MovementSums:
        """Returns the sums over the frames of both."""
        names = [field.name for field in fields(self)]
        return MovementSums(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @property
    def summary(self) -> MovementSummary:
        """The figures."""
        root_aligned, pose_aligned = (self.aligned / self.frames).tolist()
        (acceleration,) = divide(self.accelerations, self.acceleration_frames)
        original_jerk, jerk = divide(self.jerks, self.jerk_frames)
        original_speed, speed = divide(self.speeds, self.contacts)
        original_sliding, sliding = divide(self.slides, self.contacts)
        return MovementSummary(
            root_aligned_mpjpe_mm=root_aligned,
            procrustes_aligned_mpjpe_mm=pose_aligned,
            acceleration_error_m_s2=acceleration,
            jerk_m_s3=jerk,
            original_jerk_m_s3=original_jerk,
            jerk_ratio=jerk / original_jerk if original_jerk and jerk is not None else None,
            foot_contacts=self.contacts,
            foot_speed_m_s=speed,
            original_foot_speed_m_s=original_speed,
            sliding=sliding,
            original_sliding=original_sliding,
        )


def divide(sums: Tensor, count: int) -> list[float | None]:
    """Returns ``sums / count``; None if ``count`` is 0."""
    return (sums / count).tolist() if count else [None] * len(sums)


def measure_movement(
    positions: Tensor, originals: Tensor, names: Sequence[str], fps: float
) -> MovementSums:
    """Compares how a reconstruction moves with its original.

    Args:
        positions: ``(T, J, 3)`` in metres, of the reconstruction.
        originals: ``(T, J, 3)`` in metres.
        names: the names of the joints.
        fps: frames per second.
    """
    positions, originals = positions.double(), originals.double()
    aligned = (
        joint_distances(align_roots(positions), align_roots(originals)),
        joint_distances(align_poses(positions, originals), originals),
    )
    pair = torch.stack([originals, positions])
    accelerations = acceleration_errors(positions, originals, fps)
    jerks = torch.stack([joint_jerk(each, fps) for each in pair])
    speeds = speeds_on_ground(pair, find_feet(names), fps)
    speeds = speeds[:, ~speeds[0].isnan()]
    return MovementSums(
        frames=len(positions),
        aligned=torch.stack([distances.mean(dim=1).sum() for distances in aligned]),
        accelerations=accelerations.sum()[None],
        acceleration_frames=len(accelerations),
        jerks=jerks.sum(dim=1),
        jerk_frames=jerks.shape[1],
        contacts=speeds.shape[1],
        speeds=speeds.sum(1),
        slides=(speeds > SLIDING_SPEED).double().sum(1),
    )


def speeds_on_ground(pair: Tensor, feet: Sequence[int], fps: float) -> Tensor:
    """Returns the horizontal speed in m/s of feet that are on the ground in the original.

    Args:
        pair: ``(2, T, J, 3)`` in metres, the original and the reconstruction.
        feet: indices of joints.

    Returns:
        ``(2, T - 1, feet)``; NaN where the foot is off the ground.
    """
    placed = pair[:, :, list(feet)]
    speeds = torch.stack([ground_speed(positions, fps) for positions in placed])
    return speeds.where(find_steps(placed[0]), math.nan) if feet else speeds
