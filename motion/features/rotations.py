"""Features with rotations: a row of numbers for each frame of a clip, and the way back.

The way back uses the rotations, not inverse kinematics, and gives a clip of the same skeleton.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import roma
import torch
from torch import Tensor

from motion.config import FeatureSpec
from motion.errors import MotionError
from motion.features.heading import find_headings, turn_roots, turn_vectors, wrap
from motion.skeleton.clip import MotionClip
from motion.skeleton.joint_names import FOOT_PARTS, find_feet
from motion.skeleton.tree import Skeleton, end_positions, forward_kinematics

# Shorter vectors have no direction. A network may output them; the result is still defined.
SHORTEST = 1e-8


def extract_features(clip: MotionClip, spec: FeatureSpec) -> Tensor:
    """Returns the features (T, D) of a clip, in its dtype.

    Raises:
        MotionError: the skeleton does not have the contact joints, or they are not its feet.
    """
    rotations, root, positions = clip.rotations, clip.root_positions, clip.pose.positions
    velocities = difference_backward(positions) * clip.fps
    steps = difference_backward(root) * clip.fps
    positions_on_ground = positions - project_to_ground(root)[:, None]
    turns = []
    if spec.relative:
        headings = find_headings(rotations[:, 0])
        rotations = turn_roots(rotations, -headings)
        turns = [wrap(difference_backward(headings))[:, None] * clip.fps]
        steps = turn_vectors(steps, -headings)
        velocities = turn_vectors(velocities, -headings[:, None])
        positions_on_ground = turn_vectors(positions_on_ground, -headings[:, None])
    parts = [to_rot6d(rotations, spec.rot6d).flatten(1)]
    if spec.root:
        parts += [*turns, steps[:, [0, 2]], root[:, 1:2]]
    if spec.positions:
        parts.append(positions_on_ground.flatten(1))
    if spec.velocities:
        parts.append(velocities.flatten(1))
    if spec.contacts:
        check_contact_joints(clip.skeleton, spec)
        parts.append(find_contacts(positions, spec).to(root))
    return torch.cat(parts, dim=1)


def restore_motion(
    features: Tensor,
    spec: FeatureSpec,
    skeleton: Skeleton,
    fps: float,
    *,
    start: tuple[float, ...] = (0.0, 0.0),
    start_heading: float = 0.0,
    root_positions: Tensor | None = None,
    headings: Tensor | None = None,
) -> MotionClip:
    """Returns the clip of features (T, D). Only their rotations and their root are used.

    Features without a root stay above ``start``, so high that the lowest point of the person is on
    the ground in half of the frames, if ``root_positions`` are not given. Without a root, features
    relative to the heading keep ``start_heading``, if ``headings`` are not given.

    Args:
        start: (x, z) of the root in the first frame, metres. Features do not hold it.
        start_heading: the heading in the first frame in radians, which features relative to the
            heading do not hold.
        root_positions: (T, 3), metres; they replace the root of the features.
        headings: (T,), radians; they replace the headings of features relative to the heading.

    Raises:
        MotionError: ``spec`` and ``skeleton`` have another D, or there are no frames.
    """
    expected = spec.channels(skeleton.joints)
    if features.ndim != 2 or features.shape[1] != expected or not len(features):
        raise MotionError(
            f"features are {tuple(features.shape)}; {skeleton.joints} joints need (T, {expected}) "
            "and at least one frame"
        )
    width = 6 * skeleton.joints
    rotations = from_rot6d(features[:, :width].unflatten(1, (-1, 6)), spec.rot6d)
    if spec.relative:
        if headings is None:
            turns = features[:, width] if spec.root else features.new_zeros(len(features))
            turns = turns.double() / fps
            turns[0] = start_heading  # the first frame has no turn
            headings = turns.cumsum(dim=0)
        # Rotations that a network outputs may have a small heading of their own.
        headings = headings.to(rotations)
        rotations = turn_roots(rotations, headings - find_headings(rotations[:, 0]))
    if root_positions is None and spec.root:
        x, z, height = features[:, width : width + spec.root_channels].double().unbind(1)[-3:]
        steps = torch.stack([x, torch.zeros_like(x), z], dim=1) / fps
        if headings is not None:
            steps = turn_vectors(steps, headings.double())
        steps[0] = steps.new_tensor((start[0], 0, start[1]))  # the first frame has no velocity
        path = steps.cumsum(dim=0)
        root_positions = torch.stack([path[:, 0], height, path[:, 2]], dim=1)
    elif root_positions is None:
        place = (start[0], find_height(skeleton, rotations), start[1])
        root_positions = features.new_tensor(place).expand(len(features), -1)
    return MotionClip(
        skeleton=skeleton,
        rotations=rotations,
        root_positions=root_positions.to(rotations),
        fps=fps,
    )


def restore_onto(clip: MotionClip, features: Tensor, spec: FeatureSpec) -> MotionClip:
    """Returns the clip of features (T, D), at the place of ``clip``.

    Features without a root take the path of ``clip``, and its headings if they are relative to the
    heading.
    """
    headings = find_headings(clip.rotations[:, 0])
    restored = restore_motion(
        features.to(clip.rotations),
        spec,
        clip.skeleton,
        clip.fps,
        start=clip.start,
        start_heading=headings[0].item(),
        root_positions=None if spec.root else clip.root_positions[: len(features)],
        headings=None if spec.root else headings[: len(features)],
    )
    expressions = clip.expressions
    return replace(
        clip,
        rotations=restored.rotations,
        root_positions=restored.root_positions,
        expressions=None if expressions is None else expressions[: len(features)],
    )


def to_rot6d(rotations: Tensor, lines: Literal["rows", "columns"]) -> Tensor:
    """Returns the first two rows or columns of (..., 3, 3), one after the other: (..., 6)."""
    matrices = rotations if lines == "rows" else rotations.mT
    return matrices[..., :2, :].flatten(-2)


def from_rot6d(vectors: Tensor, lines: Literal["rows", "columns"]) -> Tensor:
    """Returns rotations (..., 3, 3) of any (..., 6), orthonormal by Gram-Schmidt."""
    columns = vectors.unflatten(-1, (2, 3)).mT
    # roma takes a float, though its type hint says int.
    rotations = roma.special_gramschmidt(columns, epsilon=SHORTEST)  # pyright: ignore[reportArgumentType]
    return rotations.mT if lines == "rows" else rotations


def check_contact_joints(skeleton: Skeleton, spec: FeatureSpec) -> None:
    """Raises MotionError if the contact joints are not there, or if others are feet by name."""
    chosen, count = spec.contact_joints, skeleton.joints
    if not all(0 <= joint < count for joint in chosen):
        raise MotionError(f"contact_joints are {chosen}, but the skeleton has {count} joints")
    feet = find_feet(skeleton.names)
    names = [skeleton.names[joint] for joint in chosen]
    if feet and not any(part in name.lower() for part in FOOT_PARTS for name in names):
        raise MotionError(
            f"contact_joints are {chosen}, which are {', '.join(names)} here and no feet; set "
            f"features.contact_joints to {list(feet)}, as the names of the joints say"
        )


def find_contacts(positions: Tensor, spec: FeatureSpec) -> Tensor:
    """Returns which contact joints rest: bool (T, C) for positions (T, J, 3) in metres.

    A joint rests if it moves less than the threshold to the next frame. In the last frame it rests
    if it rests in the frame before.
    """
    feet = positions[:, list(spec.contact_joints)]
    steps = difference_backward(feet).norm(dim=-1) < spec.contact_threshold
    return torch.cat([steps[1:], steps[-1:]])


def difference_backward(values: Tensor) -> Tensor:
    """Returns each row minus the row before; 0 for the first row."""
    return torch.diff(values, dim=0, prepend=values[:1])


def project_to_ground(root_positions: Tensor) -> Tensor:
    """Returns the points (T, 3) on the ground below points (T, 3)."""
    return root_positions * root_positions.new_tensor([1.0, 0.0, 1.0])


def find_height(skeleton: Skeleton, rotations: Tensor) -> float:
    """Returns metres from the lowest point of a person to the root, the median over frames.

    The rest pose does not tell this height, because it may lie on its side.

    Args:
        rotations: (T, J, 3, 3), with y up.
    """
    pose = forward_kinematics(skeleton, rotations, rotations.new_zeros(len(rotations), 3))
    points = torch.cat([pose.positions, end_positions(skeleton, pose)], dim=1)
    return -points[..., 1].amin(dim=1).median().item()
