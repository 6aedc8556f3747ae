"""Turning features about the vertical, as if the person had been recorded from elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from motion.config import FeatureSpec
from motion.features.heading import make_turns, turn_vectors
from motion.features.rotations import from_rot6d, to_rot6d


def turn_features(spec: FeatureSpec, joints: int, features: Tensor, angle: float) -> Tensor:
    """Returns features ``(T, D)`` of the motion turned by ``angle`` in radians, from +z towards +x.

    Features relative to the heading stay as they are.

    Args:
        spec: what the channels mean.
        joints: the number of joints, J.
    """
    if spec.relative:
        return features
    turn = features.new_tensor(angle)
    turned = features.clone()
    roots = make_turns(turn) @ from_rot6d(features[:, :6], spec.rot6d)
    turned[:, :6] = to_rot6d(roots, spec.rot6d)
    first = 6 * joints
    if spec.root:
        velocity = features[:, first : first + 2]
        still = torch.zeros_like(velocity[:, :1])
        velocity = torch.cat([velocity[:, :1], still, velocity[:, 1:]], dim=1)
        turned[:, first : first + 2] = turn_vectors(velocity, turn)[:, [0, 2]]
        first += spec.root_channels
    last = first + 3 * joints * (spec.positions + spec.velocities)
    vectors = features[:, first:last].unflatten(1, (-1, 3))
    turned[:, first:last] = turn_vectors(vectors, turn).flatten(1)
    return turned
