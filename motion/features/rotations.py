"""What a network sees of a motion: a row of numbers for each frame, and the way back.

The way back is through rotations, not inverse kinematics: what comes out is a clip of the skeleton.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import roma
import torch
from torch import Tensor

from motion.config import FeatureSpec
from motion.errors import MotionError
from motion.skeleton.clip import MotionClip
from motion.skeleton.tree import Skeleton

# Vectors shorter than this are no direction; a network that gives them gets a defined result.
SHORTEST = 1e-8


def extract_features(clip: MotionClip, spec: FeatureSpec) -> Tensor:
    """Features (T, D) of a clip, in its dtype.

    Raises:
        MotionError: the skeleton does not have the contact joints.
    """
    parts = [to_rot6d(clip.rotations, spec.rot6d).flatten(1)]
    root, positions = clip.root_positions, clip.pose.positions
    if spec.root:
        velocity = backward_difference(root)[:, [0, 2]] * clip.fps
        parts += [velocity, root[:, 1:2]]
    if spec.positions:
        parts.append((positions - ground(root)[:, None]).flatten(1))
    if spec.velocities:
        parts.append((backward_difference(positions) * clip.fps).flatten(1))
    if spec.contacts:
        parts.append(find_contacts(positions, spec).to(root))
    return torch.cat(parts, dim=1)


def restore_clip(
    features: Tensor,
    spec: FeatureSpec,
    skeleton: Skeleton,
    fps: float,
    *,
    start: tuple[float, float] = (0.0, 0.0),
    root_positions: Tensor | None = None,
) -> MotionClip:
    """The clip of features (T, D), from their rotations and root alone.

    Args:
        start: (x, z) of the root in the first frame, metres; features do not say.
        root_positions: (T, 3), metres, instead of what the features say; for those without root,
            which else stay above ``start``, as high as the hips of someone who stands upright.

    Raises:
        MotionError: D is not that of ``spec`` and ``skeleton``.
    """
    expected = spec.channels(skeleton.joints)
    if features.ndim != 2 or features.shape[1] != expected or not len(features):
        raise MotionError(
            f"features are {tuple(features.shape)}; {skeleton.joints} joints need (T, {expected}) "
            "and at least one frame"
        )
    width = 6 * skeleton.joints
    rotations = from_rot6d(features[:, :width].unflatten(1, (-1, 6)), spec.rot6d)
    if root_positions is None and spec.root:
        velocity, height = features[:, width : width + 2], features[:, width + 2]
        steps = velocity.double() / fps
        steps[0] = steps.new_tensor(start)  # nothing comes before the first frame
        path = steps.cumsum(dim=0)
        root_positions = torch.stack([path[:, 0], height.double(), path[:, 1]], dim=1)
    elif root_positions is None:
        place = (start[0], standing_height(skeleton), start[1])
        root_positions = features.new_tensor(place).expand(len(features), -1)
    return MotionClip(
        skeleton=skeleton,
        rotations=rotations,
        root_positions=root_positions.to(rotations),
        fps=fps,
    )


def restore_onto(clip: MotionClip, features: Tensor, spec: FeatureSpec) -> MotionClip:
    """The clip of features (T, D) of ``clip``, at its place; those without root take its path."""
    restored = restore_clip(
        features.to(clip.rotations),
        spec,
        clip.skeleton,
        clip.fps,
        start=clip.start,
        root_positions=None if spec.root else clip.root_positions[: len(features)],
    )
    return replace(clip, rotations=restored.rotations, root_positions=restored.root_positions)


def to_rot6d(rotations: Tensor, lines: Literal["rows", "columns"]) -> Tensor:
    """The first two rows or columns of (..., 3, 3), one after the other: (..., 6)."""
    matrices = rotations if lines == "rows" else rotations.mT
    return matrices[..., :2, :].flatten(-2)


def from_rot6d(vectors: Tensor, lines: Literal["rows", "columns"]) -> Tensor:
    """Rotations (..., 3, 3) of any (..., 6), made orthonormal (Gram-Schmidt)."""
    columns = vectors.unflatten(-1, (2, 3)).mT
    rotations = roma.special_gramschmidt(columns, epsilon=SHORTEST)
    return rotations.mT if lines == "rows" else rotations


def find_contacts(positions: Tensor, spec: FeatureSpec) -> Tensor:
    """Which contact joints rest: bool (T, C) of positions (T, J, 3).

    A joint rests if it moves less than the threshold to the next frame; in the last frame, if it
    did in the one before.
    """
    joints = positions.shape[1]
    if not all(0 <= joint < joints for joint in spec.contact_joints):
        raise MotionError(
            f"contact_joints are {spec.contact_joints}, but the skeleton has {joints} joints"
        )
    feet = positions[:, list(spec.contact_joints)]
    steps = backward_difference(feet).norm(dim=-1) < spec.contact_threshold
    return torch.cat([steps[1:], steps[-1:]])


def backward_difference(values: Tensor) -> Tensor:
    """Each row less the one before; 0 for the first."""
    return torch.diff(values, dim=0, prepend=values[:1])


def ground(root_positions: Tensor) -> Tensor:
    """The points of the ground below (T, 3)."""
    return root_positions * root_positions.new_tensor([1.0, 0.0, 1.0])


def standing_height(skeleton: Skeleton) -> float:
    """Metres from the lowest joint to the root, in the rest pose."""
    heights = [0.0]
    for offset, parent in zip(skeleton.offsets[1:], skeleton.parents[1:], strict=True):
        heights.append(heights[parent] + offset[1])
    return -min(heights)
