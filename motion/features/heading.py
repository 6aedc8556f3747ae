"""The heading of a person: the turn of the root about the vertical.

A rotation is a turn about the vertical after a turn about some horizontal axis, in one way only
(swing and twist). The first turn is the heading, so to turn a person about the vertical changes the
heading by that angle, and nothing else. The root of a person who stands on the head, or who is
turned by half a turn about a horizontal axis in another way, has no heading; close to it the
heading changes fast.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def find_headings(rotations: Tensor) -> Tensor:
    """Returns the headings (...) in radians of rotations (..., 3, 3), from +z towards +x."""
    return torch.atan2(
        rotations[..., 0, 2] - rotations[..., 2, 0], rotations[..., 0, 0] + rotations[..., 2, 2]
    )


def make_turns(angles: Tensor) -> Tensor:
    """Returns the rotations (..., 3, 3) about the vertical by angles (...) in radians."""
    cosine, sine = angles.cos(), angles.sin()
    zero, one = torch.zeros_like(angles), torch.ones_like(angles)
    rows = [cosine, zero, sine, zero, one, zero, -sine, zero, cosine]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def turn_roots(rotations: Tensor, angles: Tensor) -> Tensor:
    """Returns rotations (T, J, 3, 3) with the root, the first joint, turned by angles (T,)."""
    roots = make_turns(angles) @ rotations[:, 0]
    return torch.cat([roots[:, None], rotations[:, 1:]], dim=1)


def turn_vectors(vectors: Tensor, angles: Tensor) -> Tensor:
    """Returns vectors (..., 3) turned about the vertical by angles (...) in radians."""
    cosine, sine = angles.cos(), angles.sin()
    x, y, z = vectors.unbind(dim=-1)
    return torch.stack([cosine * x + sine * z, y, cosine * z - sine * x], dim=-1)


def wrap(angles: Tensor) -> Tensor:
    """Returns the same angles from -pi to pi."""
    return torch.remainder(angles + math.pi, 2 * math.pi) - math.pi
