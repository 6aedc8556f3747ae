"""Metrics of motion: distances of a reconstruction from its original, acceleration, jerk, feet."""

from __future__ import annotations

import math

import roma
from torch import Tensor

from wanvae.errors import UserError

# A foot is on the ground if it is less than so many metres above it. It slides if it is faster than
# so many metres per second: 2.5 cm from frame to frame at the 20 frames per second of HumanML3D.
CONTACT_HEIGHT, SLIDING_SPEED = 0.05, 0.5
# Points whose squared distances from their centre, in square metres, add up to less are one point.
SMALLEST_SPREAD = 1e-12
# The share of frames in which the lower foot is below the ground, because recordings are noisy.
BELOW_GROUND = 0.05


def joint_distances(positions: Tensor, originals: Tensor) -> Tensor:
    """Returns the distance of each joint (..., J) in mm, for positions (..., J, 3) in metres."""
    check_shapes(positions, originals)
    return (positions - originals).norm(dim=-1) * 1000


def joint_errors(positions: Tensor, originals: Tensor) -> Tensor:
    """Returns the mean distance of each joint (J,) in mm, for positions (..., J, 3) in metres."""
    return joint_distances(positions, originals).flatten(0, -2).mean(dim=0)


def mpjpe(positions: Tensor, originals: Tensor) -> float:
    """Returns the mean per-joint position error in mm, for positions (..., J, 3) in metres.

    Positions are compared as they are: nothing is aligned, not even the root.
    """
    return joint_errors(positions, originals).mean().item()


def rotation_error(rotations: Tensor, originals: Tensor) -> float:
    """Returns the mean angle between rotations (..., 3, 3), in degrees."""
    check_shapes(rotations, originals)
    angles = roma.rotmat_geodesic_distance(rotations.double(), originals.double())
    return math.degrees(angles.mean().item())


def align_roots(positions: Tensor) -> Tensor:
    """Returns positions (..., J, 3) relative to the root, the first joint."""
    return positions - positions[..., :1, :]


def align_poses(positions: Tensor, originals: Tensor) -> Tensor:
    """Returns positions (..., J, 3), with each frame moved, turned and scaled onto its original.

    The similarity transform of each frame is the one with the smallest sum of squared distances
    (Procrustes; Umeyama, 1991). Distances after it tell errors of the pose alone (PA-MPJPE).
    """
    check_shapes(positions, originals)
    moved, targets = (x.double().flatten(0, -3) for x in (positions, originals))
    moved, centre = (x - x.mean(dim=1, keepdim=True) for x in (moved, targets))
    turn, singular = roma.special_procrustes(centre.mT @ moved, return_singular_values=True)
    spread = moved.square().sum(dim=(1, 2)).clamp(min=SMALLEST_SPREAD)
    scale = singular.sum(dim=1) / spread
    aligned = scale[:, None, None] * (moved @ turn.mT) + targets.mean(dim=1, keepdim=True)
    return aligned.view(positions.shape).to(positions)


def acceleration_errors(positions: Tensor, originals: Tensor, fps: float) -> Tensor:
    """Returns the mean error of the accelerations of joints in m/s^2: (T - 2,) for (T, J, 3).

    Accelerations are second differences of positions in metres, as in "Learning 3D Human Dynamics
    from Video" (Kanazawa et al., 2019).
    """
    check_shapes(positions, originals)
    return (positions - originals).diff(n=2, dim=0).norm(dim=-1).mean(dim=1) * fps**2


def joint_jerk(positions: Tensor, fps: float) -> Tensor:
    """Returns the mean jerk of the joints in m/s^3: (T - 3,) for positions (T, J, 3) in metres.

    Jerk is the third derivative of the position, here by differences. Its mean over frames is the
    jitter of "TransPose" (Yi et al., 2021).
    """
    return positions.diff(n=3, dim=0).norm(dim=-1).mean(dim=1) * fps**3


def ground_speed(positions: Tensor, fps: float) -> Tensor:
    """Returns the horizontal speed (T - 1, J) in m/s to the next frame, for (T, J, 3) in metres."""
    return positions[..., [0, 2]].diff(dim=0).norm(dim=-1) * fps


def find_steps(feet: Tensor) -> Tensor:
    """Returns whether feet are on the ground both in a frame and in the next: bool (T - 1, F).

    A foot is on the ground if it is less than 5 cm above it, as in the foot skating ratio of
    "Guided Motion Diffusion" (Karunratanakul et al., 2023). The height of the ground is a low
    quantile of the height of the lower foot, because the ground is not at 0 in all files.

    Args:
        feet: (T, F, 3), positions in metres.
    """
    heights = feet[..., 1]
    ground = heights.amin(dim=1).quantile(BELOW_GROUND)
    low = heights < ground + CONTACT_HEIGHT
    return low[1:] & low[:-1]


def check_shapes(values: Tensor, originals: Tensor) -> None:
    """Raises UserError if two tensors have different shapes, or are empty."""
    if values.shape != originals.shape or not values.numel():
        raise UserError(f"{tuple(values.shape)} cannot be compared with {tuple(originals.shape)}")
