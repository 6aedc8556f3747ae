"""How far a reconstructed motion is from the original."""

from __future__ import annotations

import math

import roma
from torch import Tensor


def joint_errors(positions: Tensor, originals: Tensor) -> Tensor:
    """Mean distance of each joint (J,) in millimetres, of positions (..., J, 3) in metres."""
    check_same(positions, originals)
    return (positions - originals).norm(dim=-1).flatten(0, -2).mean(dim=0) * 1000


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


def check_same(values: Tensor, originals: Tensor) -> None:
    if values.shape != originals.shape or not values.numel():
        raise ValueError(f"{tuple(values.shape)} cannot be compared with {tuple(originals.shape)}")
