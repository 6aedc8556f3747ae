"""Positions of joints for training are those of forward kinematics, and so are their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from motion.features.rotations import from_rot6d
from motion.skeleton.packaged import HUMANML3D, SMPLX
from motion.skeleton.tree import Skeleton, forward_kinematics
from motion.train import positions
from motion.train.positions import Tree, find_positions

ONE = Skeleton(names=("a",), parents=(-1,), offsets=((0.0, 1.0, 0.0),))
# Depths are not in the order of the joints.
BRANCHED = Skeleton(
    names=("a", "b", "c", "d", "e", "f"),
    parents=(-1, 0, 1, 0, 3, 1),
    offsets=((0, 0, 0), (0, 1, 0), (1, 0, 0.5), (0, 0, 1), (0.2, 0, 1), (-1, 0.3, 0)),
)


def by_kinematics(skeleton: Skeleton, vectors: Tensor, lines: str) -> Tensor:
    rotations = from_rot6d(vectors, lines)
    origin = vectors.new_zeros(*vectors.shape[:-2], 3)
    return forward_kinematics(skeleton, rotations, origin).positions


@pytest.mark.parametrize("lines", ["rows", "columns"])
@pytest.mark.parametrize("skeleton", [ONE, BRANCHED, HUMANML3D, SMPLX], ids=lambda s: s.joints)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)], ids=str
)
def test_positions_and_gradients(monkeypatch, skeleton, lines, dtype, tolerance):
    monkeypatch.setattr(positions, "BLOCK", 5)
    torch.manual_seed(0)
    vectors = torch.randn(3, 4, skeleton.joints, 6, dtype=dtype, requires_grad=True)
    found = find_positions(Tree(skeleton, lines), vectors)
    expected = by_kinematics(skeleton, vectors.double(), lines)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=10 * tolerance)
    grad = torch.randn_like(expected)
    (ours,) = torch.autograd.grad(found, vectors, grad.to(dtype))
    if skeleton is ONE:
        assert not ours.any()
        return
    (theirs,) = torch.autograd.grad(expected, vectors, grad)
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("lines", ["rows", "columns"])
def test_derivatives(lines):
    torch.manual_seed(0)
    vectors = torch.randn(3, 6, 6, dtype=torch.float64, requires_grad=True)
    tree = Tree(BRANCHED, lines)
    assert torch.autograd.gradcheck(lambda x: find_positions(tree, x), vectors)


def test_vectors_without_a_direction_are_finite():
    vectors = torch.zeros(2, 6, 6, requires_grad=True)
    found = find_positions(Tree(BRANCHED, "rows"), vectors)
    (gradient,) = torch.autograd.grad(found.sum(), vectors)
    assert found.isfinite().all() and gradient.isfinite().all()
