"""Positions of joints in metres from normalized features, and the losses of how they move."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from motion.errors import MotionError
from motion.features.heading import turn_vectors
from motion.features.paths import trace_path
from motion.features.published import PUBLISHED
from motion.metrics import CONTACT_HEIGHT
from motion.models import MotionModel
from motion.skeleton.joint_names import find_feet
from motion.skeleton.tree import Skeleton
from motion.train.positions import Tree, find_positions

# The mean error of a tensor and its target.
MeanError: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class Movement:
    """Finds positions of joints in metres from normalized features ``(B, T, D)`` of a model.

    Args:
        model: the model of the features.
        skeleton: the skeleton of the motion; None for features that are not known, whose positions
            cannot be found.
    """

    def __init__(self, model: MotionModel, skeleton: Skeleton | None) -> None:
        self.model = model
        self.joint_names = () if skeleton is None else skeleton.names
        self.spec, self.fps = model.config.features, model.config.fps
        self._tree = None
        if self.spec is not None and skeleton is not None:
            self._tree = Tree(skeleton, self.spec.rot6d)

    def find_pose(self, features: Tensor) -> Tensor:
        """Returns positions ``(B, T, J, 3)`` from the root; of published ones in the world."""
        motion = self.model.normalizer.denormalize(features)
        if self._tree is None:
            return PUBLISHED[motion.shape[-1]].locate(motion)
        joints = len(self.joint_names)
        return find_positions(self._tree, motion[..., : 6 * joints].unflatten(-1, (joints, 6)))

    def find_places(self, features: Tensor, pose: Tensor) -> Tensor:
        """Returns positions ``(B, T, J, 3)`` in the world, from the ``find_pose`` of features.

        The first frame is at the origin, and its heading is 0 if features are relative to the
        heading. Features without a root stay there.
        """
        if self.spec is None or not self.spec.root:
            return pose
        first = 6 * len(self.joint_names)
        motion = self.model.normalizer.denormalize(features)
        root = motion[..., first : first + self.spec.root_channels]
        headings, path = trace_path(root, self.fps)
        if self.spec.relative:
            pose = turn_vectors(pose, headings[..., None])
        place = torch.stack([path[..., 0], root[..., -1], path[..., 2]], dim=-1)
        return pose + place[:, :, None]

    def find_feet(self) -> list[int]:
        """Returns the joints of the feet; MotionError if the names of the joints do not tell."""
        feet = find_feet(self.joint_names)
        if not feet:
            raise MotionError(
                "the names of the joints do not tell which joints are the feet; set "
                "loss.foot_velocity to 0"
            )
        return list(feet)


def find_accelerations(places: Tensor, fps: float) -> Tensor:
    """Returns accelerations ``(B, T - 2, J, 3)`` in m/s^2 of positions ``(B, T, J, 3)``."""
    return places.diff(n=2, dim=1) * fps**2


def find_foot_error(error: MeanError, feet: Tensor, originals: Tensor, fps: float) -> Tensor:
    """Returns the mean error of the velocities of feet, where they are on the ground.

    Features without a root do not tell the ground, so it is at the lower foot: a foot is on the
    ground if it is less than 5 cm above the lower foot of the original, in a frame and the next.

    Args:
        error: the mean error of two tensors.
        feet: ``(B, T, F, 3)`` in metres.
        originals: the same of the original.
    """
    heights = originals[..., 1]
    low = heights < heights.amin(dim=-1, keepdim=True) + CONTACT_HEIGHT
    steps = low[:, 1:] & low[:, :-1]
    velocities = (positions.diff(dim=1) * fps for positions in (feet, originals))
    # A mean over all steps, so that processes with other numbers of contacts can be averaged.
    return error(*(velocity * steps[..., None] for velocity in velocities))
