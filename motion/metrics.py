"""How far a reconstructed motion is from the original."""

from __future__ import annotations

import math

import roma
from torch import Tensor

from wanvae.errors import UserError

# Metres above the ground below which a foot is on it, and metres a second above which it slides
# there: 2.5 cm from frame to frame at the 20 frames per second of HumanML3D.
CONTACT_HEIGHT, SLIDING_SPEED = 0.05, 0.5
# The share of frames in which the lower foot is below the ground, for what is recorded is noisy.
BELOW_GROUND = 0.05


def joint_distances(positions: Tensor, originals: Tensor) -> Tensor:
    """Distance of each joint (..., J) in millimetres, of positions (..., J, 3) in metres."""
    check_same(positions, originals)
    return (positions - originals).norm(dim=-1) * 1000


def joint_errors(positions: Tensor, originals: Tensor) -> Tensor:
    """Mean distance of each joint (J,) in millimetres, of positions (..., J, 3) in metres."""
    return joint_distances(positions, originals).flatten(0, -2).mean(dim=0)


def mpjpe(positions: Tensor, originals: Tensor) -> float:
    """Mean per-joint position error in millimetres, of positions (..., J, 3) in metres.

    Positions are compared as they are: the root is not moved, nothing is aligned.
    """
    return joint_errors(positions, originals).mean().item()


def rotation_error(rotations: Tensor, originals: Tensor) -> float:
    """Mean angle between rotations (..., 3, 3) in degrees."""
    check_same(rotations, originals)
    angles = roma.rotmat_geodesic_distance(rotations.double(), originals.double())
    return math.degrees(angles.mean().item())


def joint_jerk(positions: Tensor, fps: float) -> Tensor:
    """Mean jerk of the joints in each frame but three, (T - 3,), of positions (T, J, 3) in metres.

    The third derivative of the position in m/s^3, by differences. Its mean over frames is the
    jitter of "TransPose" (Yi et al., 2021).
    """
    return positions.diff(n=3, dim=0).norm(dim=-1).mean(dim=1) * fps**3


def ground_speed(positions: Tensor, fps: float) -> Tensor:
    """Horizontal speed (T - 1, J) in m/s from each frame to the next, of (T, J, 3) in metres."""
    return positions[..., [0, 2]].diff(dim=0).norm(dim=-1) * fps


def find_steps(feet: Tensor) -> Tensor:
    """Where feet (T, F, 3), metres, are on the ground, in a frame and the next: bool (T - 1, F).

    They are if they are less than 5 cm above the ground, as the foot skating ratio of "Guided
    Motion Diffusion" (Karunratanakul et al., 2023) has it. The ground is as high as the lower foot
    mostly is at least, for only some files have it at 0.
    """
    heights = feet[..., 1]
    ground = heights.amin(dim=1).quantile(BELOW_GROUND)
    low = heights < ground + CONTACT_HEIGHT
    return low[1:] & low[:-1]


def check_same(values: Tensor, originals: Tensor) -> None:
    if values.shape != originals.shape or not values.numel():
        raise UserError(f"{tuple(values.shape)} cannot be compared with {tuple(originals.shape)}")
