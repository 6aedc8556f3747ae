"""Skeletons as trees of joints, and the positions of joints for given rotations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from wanvae.errors import UserError

EULER_ORDERS = tuple("".join(axes) for axes in permutations("XYZ"))


@dataclass(frozen=True, kw_only=True)
class EndSite:
    """The end of a bone that is not a joint: the tip of a finger, the top of the head.

    Attributes:
        joint: index of the joint.
        offset: (x, y, z) from the joint, in the axes of the joint, in metres.
    """

    joint: int
    offset: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A tree of J joints. The first joint is the root, and parents come before their children.

    Lengths are in metres and y points up, whatever unit and axes the file of the skeleton has.

    Attributes:
        names: the names of the joints.
        parents: the index of the parent of each joint; -1 for the root.
        offsets: (x, y, z) of each joint from its parent in the rest pose, in metres; for the root,
            from the origin.
        end_sites: the ends of bones that are not joints.
        orders: the Euler order of each joint in BVH files, such as "ZXY": the axes of the intrinsic
            rotations, first to last. Empty means "ZXY" for all.
        unit: the length of one unit of the file, in metres.
        up: the axis that points up in the file, "y" or "z".

    Raises:
        UserError: the tree is not valid.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: tuple[tuple[float, ...], ...]
    end_sites: tuple[EndSite, ...] = ()
    orders: tuple[str, ...] = ()
    unit: float = 1.0
    up: Literal["y", "z"] = "y"

    def __post_init__(self) -> None:
        count = len(self.names)
        if not self.orders:
            object.__setattr__(self, "orders", ("ZXY",) * count)
        for name in ("parents", "offsets", "orders"):
            given = len(getattr(self, name))
            if given != count or not count:
                raise UserError(f"a skeleton of {count} joints has {given} {name}; give one each")
        if self.parents[0] != -1:
            raise UserError(f"the parent of the first joint is {self.parents[0]}; make it -1")
        for joint, parent in enumerate(self.parents[1:], start=1):
            if not 0 <= parent < joint:
                raise UserError(
                    f"the parent of joint {joint} is {parent}; parents must come before children"
                )
        for site in self.end_sites:
            if not 0 <= site.joint < count:
                raise UserError(f"an end site is at joint {site.joint} of {count} joints")
        for offset in (*self.offsets, *(site.offset for site in self.end_sites)):
            if len(offset) != 3 or not all(map(math.isfinite, offset)):
                raise UserError(f"an offset is {offset}; give three numbers, all finite")
        for order in self.orders:
            if order not in EULER_ORDERS:
                raise UserError(f"an Euler order is {order!r}, not one of {EULER_ORDERS}")
        if not 0 < self.unit < math.inf:
            raise UserError(f"unit must be positive metres, not {self.unit}")
        if self.up not in ("y", "z"):
            raise UserError(f"up must be y or z, not {self.up!r}")

    @property
    def joints(self) -> int:
        """J, the number of joints."""
        return len(self.names)

    @property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """The indices of the children of each joint."""
        children: list[list[int]] = [[] for _ in self.names]
        for joint, parent in enumerate(self.parents[1:], start=1):
            children[parent].append(joint)
        return tuple(map(tuple, children))

    @property
    def rest_extent(self) -> Tensor:
        """The size (3,) of the box around all joints in the rest pose, in metres."""
        still = torch.eye(3, dtype=torch.float64).expand(self.joints, 3, 3)
        return find_extent(forward_kinematics(self, still, still.new_zeros(3)).positions)

    def reorder(self, order: Sequence[int]) -> Skeleton:
        """Returns the same tree with its joints in another order.

        Args:
            order: the joints of this skeleton, parents before their children.
        """
        places = {joint: place for place, joint in enumerate(order)} | {-1: -1}
        return replace(
            self,
            names=tuple(self.names[joint] for joint in order),
            parents=tuple(places[self.parents[joint]] for joint in order),
            offsets=tuple(self.offsets[joint] for joint in order),
            end_sites=tuple(replace(end, joint=places[end.joint]) for end in self.end_sites),
            orders=tuple(self.orders[joint] for joint in order),
        )

    @property
    def span(self) -> float:
        """The length in metres along the bones between the two points furthest apart."""
        ends = [(site.joint, site.offset) for site in self.end_sites]
        bones = [*ends, *reversed(list(zip(self.parents, self.offsets, strict=True))[1:])]
        # From the leaves to the root: the longest way down from each joint.
        depths, span = [0.0] * self.joints, 0.0
        for bone, (joint, offset) in enumerate(bones):
            child = self.joints - 1 - (bone - len(ends))
            depth = math.hypot(*offset) + (depths[child] if bone >= len(ends) else 0.0)
            span = max(span, depths[joint] + depth)
            depths[joint] = max(depths[joint], depth)
        return span


class Pose(NamedTuple):
    """The joints in the world.

    Attributes:
        positions: (..., J, 3), metres.
        rotations: (..., J, 3, 3); each turns vectors from the axes of a joint to the axes of the
            world.
    """

    positions: Tensor
    rotations: Tensor


def forward_kinematics(skeleton: Skeleton, rotations: Tensor, root_positions: Tensor) -> Pose:
    """Returns the joints in the world, in the dtype and on the device of ``rotations``.

    The function is differentiable.

    Args:
        rotations: (..., J, 3, 3); each turns vectors from the axes of a joint to the axes of its
            parent.
        root_positions: (..., 3), metres in the world. They replace the offset of the root.

    Raises:
        UserError: the rotations are not of J joints.
    """
    if rotations.shape[-3:] != (skeleton.joints, 3, 3):
        raise UserError(
            f"rotations are {tuple(rotations.shape)}; "
            f"this skeleton needs (..., {skeleton.joints}, 3, 3)"
        )
    offsets = torch.as_tensor(skeleton.offsets, dtype=rotations.dtype, device=rotations.device)
    turned, positions = [rotations[..., 0, :, :]], [root_positions]
    for joint, parent in enumerate(skeleton.parents[1:], start=1):
        turned.append(turned[parent] @ rotations[..., joint, :, :])
        positions.append(positions[parent] + turned[parent] @ offsets[joint])
    return Pose(torch.stack(positions, dim=-2), torch.stack(turned, dim=-3))


def find_extent(positions: Tensor) -> Tensor:
    """Returns the size (3,) of the box around positions (J, 3)."""
    return positions.amax(dim=0) - positions.amin(dim=0)


def end_positions(skeleton: Skeleton, pose: Pose) -> Tensor:
    """Returns the positions (..., E, 3) of the E end sites, in metres."""
    joints = [site.joint for site in skeleton.end_sites]
    offsets = pose.positions.new_tensor([site.offset for site in skeleton.end_sites]).view(-1, 3)
    turned = pose.rotations[..., joints, :, :] @ offsets[:, :, None]
    return pose.positions[..., joints, :] + turned.squeeze(-1)
