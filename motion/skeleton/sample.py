"""A procedural walk, for use without a recording."""

from __future__ import annotations

import math

import roma
import torch
from torch import Tensor

from motion.skeleton.clip import MotionClip
from motion.skeleton.packaged import SMPLX
from motion.skeleton.tree import Pose, forward_kinematics
from wanvae.errors import UserError

CYCLE = 1.1  # seconds of two steps
HEEL = (0.0, -0.067, -0.05)  # from the ankle, metres
BALL, TOE = (0.0, -0.012, 0.0), (0.0, -0.012, 0.065)  # from the joint of the toes
SOFTNESS = 0.004  # metres of height over which weight passes between two points of the sole


def walk(frames: int = 240, fps: float = 30.0) -> MotionClip:
    """Returns a walk of the packaged SMPL-X skeleton along +z, in float64.

    The angles are bumps that follow the textbook curves of gait. The root moves so that the points
    on the ground stay there.

    Raises:
        UserError: ``frames`` or ``fps`` is not positive.
    """
    if frames < 1 or not fps > 0:
        raise UserError(f"{frames} frames at {fps} per second; both must be positive")
    phase = torch.arange(frames, dtype=torch.float64) / fps / CYCLE
    rotations = make_rotations(phase)
    pose = forward_kinematics(SMPLX, rotations, torch.zeros(frames, 3, dtype=torch.float64))
    root_positions = plant_root(pose, phase)
    return MotionClip(
        skeleton=SMPLX, rotations=rotations, root_positions=root_positions, fps=float(fps)
    )


def make_rotations(phase: Tensor) -> Tensor:
    """Returns rotations (T, 55, 3, 3).

    Args:
        phase: (T,), in cycles; the left heel strikes at whole numbers.
    """
    twist, tilt = torch.cos(2 * math.pi * phase), torch.sin(2 * math.pi * phase)
    still = torch.zeros_like(phase)
    angles = {  # degrees about x, then y, then z
        "pelvis": (still + 3, -5 * twist, 3 * tilt),
        "spine1": (still + 1, 3 * twist, -2 * tilt),
        "spine3": (still + 2, 6 * twist, -2 * tilt),
        "neck": (still + 4, -2 * twist, still),
        "head": (still - 8, -2 * twist, tilt),
    }
    for side, sign, own in (("left", 1, phase), ("right", -1, phase + 0.5)):
        forward = torch.cos(2 * math.pi * (own + 0.5))  # arms swing against the legs
        angles |= {
            # The hips turn against the pelvis, so that the legs swing straight ahead.
            f"{side}_hip": (-hip(own), 5 * twist, 1.5 * sign - 3 * tilt),
            f"{side}_knee": (knee(own), still, still),
            f"{side}_ankle": (-ankle(own), still + 6 * sign, still),
            f"{side}_foot": (-toes(own), still, still),
            f"{side}_collar": (still, -3 * sign * forward, still - 4 * sign),
            f"{side}_shoulder": (4 - 20 * forward, still, still - 75 * sign),
            f"{side}_elbow": (still, -sign * (24 + 12 * forward), still),
            f"{side}_wrist": (still - 10, still, still - 4 * sign),
        }
        for finger, bend in (("index", 14), ("middle", 18), ("ring", 21), ("pinky", 23)):
            for joint in (1, 2, 3):
                angles[f"{side}_{finger}{joint}"] = (still, still, still - sign * bend)
        angles[f"{side}_thumb2"] = (still, still + sign * 15, still)
    rotations = torch.eye(3, dtype=phase.dtype).expand(len(phase), SMPLX.joints, 3, 3).clone()
    for name, about in angles.items():
        turn = roma.euler_to_rotmat("XYZ", torch.stack(about, dim=-1), degrees=True)
        rotations[:, SMPLX.names.index(name)] = turn
    return rotations


def hip(phase: Tensor) -> Tensor:
    """Returns degrees of flexion: evenly from front to back, and faster to the front again."""
    turn = 2 * math.pi * (phase + 0.1)
    return 8 + 21 * torch.cos(turn - 0.44 * (1 - torch.cos(turn)))


def knee(phase: Tensor) -> Tensor:
    """Returns degrees of flexion: few as the foot takes the weight, many as the leg swings."""
    return 5 + 11 * bump(phase, 0.14, 6) + 57 * bump(phase, 0.71, 4)


def ankle(phase: Tensor) -> Tensor:
    """Returns degrees of the foot: up as the shin passes over it, down as it pushes off."""
    rises = 9 * bump(phase, 0.44, 5) + 6 * bump(phase, 0.85, 4)
    return rises - 5 * bump(phase, 0.07, 20) - 17 * bump(phase, 0.61, 16)


def toes(phase: Tensor) -> Tensor:
    """Returns degrees of the toes: they bend up as the heel rises."""
    return 28 * bump(phase, 0.57, 12)


def bump(phase: Tensor, centre: float, sharpness: float) -> Tensor:
    """Returns a bell curve that repeats in every cycle; it is 1 at its centre."""
    return torch.exp(sharpness * (torch.cos(2 * math.pi * (phase - centre)) - 1))


def plant_root(pose: Pose, phase: Tensor) -> Tensor:
    """Returns root positions (T, 3) such that the foot that carries the weight stays still."""
    points = torch.stack(
        [locate_attached(pose, *point) for point in (*sole("left"), *sole("right"))], 1
    )
    heights = points[..., 1] / -SOFTNESS
    left = torch.sigmoid(30 * torch.sin(2 * math.pi * (phase - 0.04)))
    shares = torch.stack([left, 1 - left], dim=1).repeat_interleave(3, dim=1)
    weights = torch.softmax(heights + shares.log(), dim=1)
    # The points that carry the weight between two frames do not move between them.
    between = (weights[1:] + weights[:-1]) / 2
    steps = -(between[..., None] * points.diff(dim=0)).sum(dim=1)
    root = torch.zeros_like(points[:, 0])
    root[1:] = steps.cumsum(dim=0)
    root[:, 1] = SOFTNESS * torch.logsumexp(heights, dim=1)
    return root


def sole(side: str) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """Returns three points below a foot: for each a joint, and the offset from the joint."""
    return (f"{side}_ankle", HEEL), (f"{side}_foot", BALL), (f"{side}_foot", TOE)


def locate_attached(pose: Pose, name: str, offset: tuple[float, ...]) -> Tensor:
    """Returns the positions (T, 3) of a point that is fixed to a joint."""
    joint = SMPLX.names.index(name)
    moved = pose.rotations[:, joint] @ pose.rotations.new_tensor(offset)
    return pose.positions[:, joint] + moved
