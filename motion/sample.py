"""A procedural walk, for when there is no recording at hand."""

from __future__ import annotations

import math

import roma
import torch
from torch import Tensor

from motion.bodies import SMPLX
from motion.clip import Clip
from motion.skeleton import Pose, forward_kinematics

CYCLE = 1.1  # seconds for two steps
HEEL = (0.0, -0.067, -0.05)  # from the ankle, metres
TOE = (0.0, -0.012, 0.065)  # from the ball of the foot
SOFTNESS = 0.004  # metres; weight passes from a point of the sole to another over such heights


def walk(frames: int = 240, fps: float = 30.0) -> Clip:
    """A person of the packaged SMPL-X skeleton who walks along +z, in float64.

    The angles are bumps that follow the textbook curves of gait; the root moves so that what is on
    the ground stays there.
    """
    if frames < 1 or not fps > 0:
        raise ValueError(f"{frames} frames at {fps} per second; both must be positive")
    time = torch.arange(frames, dtype=torch.float64) / fps
    rotations = walking_rotations(time / CYCLE)
    pose = forward_kinematics(SMPLX, rotations, torch.zeros(frames, 3, dtype=torch.float64))
    return Clip(
        skeleton=SMPLX, rotations=rotations, root_positions=planted_root(pose), fps=float(fps)
    )


def walking_rotations(phase: Tensor) -> Tensor:
    """Rotations (T, 55, 3, 3); phase (T,) counts cycles, the left heel strikes at whole numbers."""
    swing = torch.cos(2 * math.pi * phase)
    still = torch.zeros_like(phase)
    angles = {  # degrees about x, y and z; all but shoulders turn about x, then y, then z
        "pelvis": (still + 3, 5 * -swing, 3 * torch.sin(2 * math.pi * phase)),
        "spine1": (still + 1, 3 * swing, -2 * torch.sin(2 * math.pi * phase)),
        "spine3": (still + 2, 6 * swing, -2 * torch.sin(2 * math.pi * phase)),
        "neck": (still + 4, -2 * swing, still),
        "head": (still - 8, -2 * swing, still + torch.sin(2 * math.pi * phase)),
    }
    for side, sign, own in (("left", 1, phase), ("right", -1, phase + 0.5)):
        forward = torch.cos(2 * math.pi * (own + 0.5))  # arms swing against the legs
        angles |= {
            f"{side}_hip": (-hip(own), still, still + 1.5 * sign),
            f"{side}_knee": (knee(own), still, still),
            f"{side}_ankle": (-ankle(own), still + 6 * sign, still),
            f"{side}_foot": (-toes(own), still, still),
            f"{side}_collar": (still, -3 * sign * forward, still - 4 * sign),
            f"{side}_shoulder": (4 - 20 * forward, still, still - 70 * sign),
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
    """Degrees of flexion, from a leg that reaches forward to one that trails."""
    return 7 + 21 * torch.cos(2 * math.pi * (phase + 0.06))


def knee(phase: Tensor) -> Tensor:
    """Degrees of flexion: a little as the weight comes on, much as the leg swings through."""
    return 5 + 13 * bump(phase, 0.14, 6) + 56 * bump(phase, 0.71, 3.5)


def ankle(phase: Tensor) -> Tensor:
    """Degrees the foot points up: as the shin passes over it; down as it pushes off."""
    return 1 - 6 * bump(phase, 0.07, 20) + 10 * bump(phase, 0.44, 4) - 20 * bump(phase, 0.63, 12)


def toes(phase: Tensor) -> Tensor:
    """Degrees the toes bend up, as the heel rises."""
    return 28 * bump(phase, 0.57, 12)


def bump(phase: Tensor, centre: float, sharpness: float) -> Tensor:
    """A bell that repeats with every cycle, 1 at its centre."""
    return torch.exp(sharpness * (torch.cos(2 * math.pi * (phase - centre)) - 1))


def planted_root(pose: Pose) -> Tensor:
    """Root positions (T, 3) that keep the lowest points of the soles on the ground, and still."""
    points = torch.cat(
        [attached(pose, f"{side}_{joint}", offset)
         for side in ("left", "right")
         for joint, offset in (("ankle", HEEL), ("foot", TOE), ("foot", (0.0, -0.012, 0.0)))],
        dim=1,
    )  # fmt: skip
    heights = points[..., 1]
    root = torch.empty_like(points[:, 0])
    root[:, 1] = SOFTNESS * torch.logsumexp(-heights / SOFTNESS, dim=1)
    weights = torch.softmax(-heights / SOFTNESS, dim=1)
    # Those that carry the weight between two frames do not move there.
    between = (weights[1:] + weights[:-1]) / 2
    steps = -(between[..., None] * points.diff(dim=0)).sum(dim=1)
    for axis in (0, 2):
        root[0, axis] = 0
        root[1:, axis] = steps[:, axis].cumsum(dim=0)
    return root


def attached(pose: Pose, name: str, offset: tuple[float, ...]) -> Tensor:
    """Where a point fixed to a joint is: (T, 1, 3)."""
    joint = SMPLX.names.index(name)
    moved = pose.rotations[:, joint] @ pose.rotations.new_tensor(offset)
    return (pose.positions[:, joint] + moved)[:, None]
