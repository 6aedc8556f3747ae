"""Positions of joints that follow from 6D rotations, for the many frames of a training step.

Each number of a vector is a row of frames here: vectors are ``(J, 3, N)``, and matrices are
``(J, 3, 3, N)`` with their columns first. So an operation takes all frames of all joints of one
depth of the tree at once, in blocks that stay in the cache.

The gradient needs no products of matrices. To turn a joint turns all that hangs on it around its
position. So the gradient by its rotation is a torque, a sum over these joints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from motion.features.rotations import SHORTEST
from motion.skeleton.tree import Skeleton

# Frames at once.
BLOCK = 2048

Lines: TypeAlias = Literal["rows", "columns"]


@dataclass(frozen=True)
class Axes:
    """Right-handed axes from 6D rotations, and what was divided by on the way.

    Attributes:
        axes: ``(J, 3, 3, N)``, three unit vectors.
        first_length: ``(J, 1, N)``, the length of the first vector.
        along: ``(J, 1, N)``, the second vector times the first axis.
        second_length: ``(J, 1, N)``, the length of what the first axis leaves of the second vector.
    """

    axes: Tensor
    first_length: Tensor
    along: Tensor
    second_length: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Axes:
        """Returns the axes of 6D rotations ``(J, 6, N)``, by Gram-Schmidt."""
        first, second = vectors.unflatten(1, (2, 3)).unbind(1)
        axes = vectors.new_empty(len(vectors), 3, 3, vectors.shape[2])
        x, y, z = axes.unbind(1)
        first_length = dot(first, first).sqrt_().clamp_min_(SHORTEST)
        torch.div(first, first_length, out=x)
        along = dot(x, second)
        torch.addcmul(second, along, x, value=-1, out=y)
        second_length = dot(y, y).sqrt_().clamp_min_(SHORTEST)
        y /= second_length
        write_cross(x, y, z)
        return cls(axes, first_length, along, second_length)

    def backward(self, torques: Tensor) -> Tensor:
        """Returns the gradients of the 6D rotations, ``(J, 6, N)``.

        Args:
            torques: ``(J, 3, N)``, the gradients by a small turn around each axis.
        """
        _, y, z = self.axes.unbind(1)
        around_x, around_y, around_z = torques.split(1, dim=1)
        gradient = torques.new_empty(len(torques), 6, torques.shape[2])
        of_first, of_second = gradient.unflatten(1, (2, 3)).unbind(1)
        turn = around_x / self.second_length
        torch.mul(turn, z, out=of_second)
        torch.mul(around_z, y, out=of_first)
        of_first.addcmul_(torch.addcmul(around_y, turn, self.along), z, value=-1)
        of_first /= self.first_length
        return gradient


class Tree:
    """A skeleton, and which lines of rotation matrices 6D rotations are.

    Joints are in the order of their depths here. Inner joints are those that have children. Only
    their rotations move anything; they come first within a depth.
    """

    def __init__(self, skeleton: Skeleton, lines: Lines) -> None:
        self.lines = lines
        children, depths = skeleton.children, [0]
        for parent in skeleton.parents[1:]:
            depths.append(depths[parent] + 1)
        order = sorted(
            range(skeleton.joints), key=lambda joint: (depths[joint], not children[joint])
        )
        inner = [joint for joint in order if children[joint]]
        # The slices of each depth, in ``order`` and in ``inner``.
        self._levels = find_runs([depths[joint] for joint in order])
        self._inner_levels = find_runs([depths[joint] for joint in inner])
        # Places of parents in ``order`` and in ``inner``; the root stands for its own parent.
        parents = [max(0, skeleton.parents[joint]) for joint in order]
        self._parents = torch.tensor([order.index(joint) for joint in parents])
        self._inner_parents = torch.tensor(
            [inner.index(joint) for joint in parents if inner]
        ).long()
        self._order, self._inner = torch.tensor(order), torch.tensor(inner).long()
        self._inner_places = torch.tensor([order.index(joint) for joint in inner]).long()
        self._offsets = torch.tensor(skeleton.offsets, dtype=torch.float64)[self._order]

    def find(self, vectors: Tensor) -> Tensor:
        """Returns positions ``(J, 3, N)`` of 6D rotations ``(J, 6, N)``."""
        axes = Axes.of(vectors[self._inner])
        return self._find(axes)[0][self._order.argsort()]

    def find_gradients(self, vectors: Tensor, grad: Tensor) -> Tensor:
        """Returns the gradients of 6D rotations ``(J, 6, N)`` from ``grad`` ``(J, 3, N)``."""
        if not len(self._inner):
            return torch.zeros_like(vectors)
        axes = Axes.of(vectors[self._inner])
        positions, matrices = self._find(axes)
        # Sums over each joint and all that hangs on it.
        force, moment = grad[self._order], torch.empty_like(positions)
        write_cross(positions, force, moment)
        for above, level in reversed([*pairwise(self._levels)]):
            parents = (self._parents[level] - above.start).to(grad.device)
            force[above].index_add_(0, parents, force[level])
            moment[above].index_add_(0, parents, moment[level])
        torque, arm = moment[self._inner_places], torch.empty_like(positions[self._inner_places])
        write_cross(positions[self._inner_places], force[self._inner_places], arm)
        torque -= arm
        # In the axes of the parent.
        of_parents = matrices[self._inner_parents[self._inner_places[1:]]]
        torque[1:] = multiply_transposed(of_parents, torque[1:])
        if self.lines == "rows":
            torque.neg_()
        else:
            torque = multiply_transposed(axes.axes, torque)
        gradient = torch.zeros_like(vectors)
        gradient[self._inner] = axes.backward(torque)
        return gradient

    def _find(self, axes: Axes) -> tuple[Tensor, Tensor]:
        """Returns positions of all joints, and matrices of inner joints in the axes of the root."""
        own = axes.axes if self.lines == "columns" else axes.axes.transpose(1, 2)
        matrices = torch.empty_like(axes.axes)
        positions = matrices.new_zeros(len(self._order), 3, matrices.shape[3])
        offsets = self._offsets.to(matrices)[:, :, None]
        matrices[:1] = own[:1]
        for depth, level in enumerate(self._levels[1:], start=1):
            above = matrices[self._inner_parents[level]]
            bones = torch.empty_like(positions[level])
            write_product(above, offsets[level], bones)
            torch.add(positions[self._parents[level]], bones, out=positions[level])
            if depth < len(self._inner_levels):
                inner = self._inner_levels[depth]
                above = above[: inner.stop - inner.start, None]
                write_product(above, own[inner], matrices[inner])
        return positions, matrices


def find_runs(values: Sequence[int]) -> list[slice]:
    """Returns the slices of equal numbers in a sorted sequence."""
    starts = [place for place, value in enumerate(values) if values.index(value) == place]
    return [slice(*ends) for ends in pairwise([*starts, len(values)])]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Returns the products of two vectors ``(J, 3, N)``, ``(J, 1, N)``."""
    product = a[:, 0] * b[:, 0]
    product.addcmul_(a[:, 1], b[:, 1]).addcmul_(a[:, 2], b[:, 2])
    return product[:, None]


def write_cross(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Writes the cross products of two vectors ``(J, 3, N)``."""
    for place, (one, two) in enumerate(((1, 2), (2, 0), (0, 1))):
        torch.mul(a[:, one], b[:, two], out=out[:, place])
        out[:, place].addcmul_(a[:, two], b[:, one], value=-1)


def write_product(matrices: Tensor, vectors: Tensor, out: Tensor) -> None:
    """Writes the products of matrices ``(..., 3, 3, N)`` and vectors ``(..., 3, N)``."""
    columns, weights = matrices.unbind(-3), vectors[..., None, :].unbind(-3)
    torch.mul(columns[0], weights[0], out=out)
    out.addcmul_(columns[1], weights[1]).addcmul_(columns[2], weights[2])


def multiply_transposed(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Returns the products of transposed matrices ``(J, 3, 3, N)`` and vectors ``(J, 3, N)``."""
    rows, weights = matrices.unbind(2), vectors[:, :, None].unbind(1)
    total = rows[0] * weights[0]
    return total.addcmul_(rows[1], weights[1]).addcmul_(rows[2], weights[2])


def cut_into_blocks(frames: int) -> Iterator[slice]:
    """Yields slices of so many frames."""
    for start in range(0, frames, BLOCK):
        yield slice(start, start + BLOCK)


class FindPositions(torch.autograd.Function):
    """Positions ``(N, J, 3)`` of 6D rotations ``(N, J, 6)``, which alone are kept."""

    @staticmethod
    def forward(vectors: Tensor, tree: Tree) -> Tensor:
        found = vectors.new_empty(*vectors.shape[:2], 3)
        for block in cut_into_blocks(len(vectors)):
            rows = vectors[block].movedim(0, 2).contiguous()
            found[block] = tree.find(rows).movedim(2, 0)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        vectors, ctx.tree = inputs
        ctx.save_for_backward(vectors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (vectors,) = ctx.saved_tensors
        gradient = torch.empty_like(vectors)
        for block in cut_into_blocks(len(vectors)):
            rows, of_rows = (x[block].movedim(0, 2).contiguous() for x in (vectors, grad))
            gradient[block] = ctx.tree.find_gradients(rows, of_rows).movedim(2, 0)
        return gradient, None


def find_positions(tree: Tree, vectors: Tensor) -> Tensor:
    """Returns positions ``(..., J, 3)``, in metres from the root, of rotations ``(..., J, 6)``."""
    rows = vectors.reshape(-1, *vectors.shape[-2:])
    return FindPositions.apply(rows, tree).view(*vectors.shape[:-1], 3)
