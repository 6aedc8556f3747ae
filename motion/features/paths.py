"""The path of the root: the headings and places that its turns and velocities add up to."""

from __future__ import annotations

import torch
from torch import Tensor

from motion.features.heading import turn_vectors


def add_up(steps: Tensor) -> Tensor:
    """Returns where steps ``(B, T, ...)`` from the frame before lead; the first step counts not."""
    return torch.cat([torch.zeros_like(steps[:, :1]), steps[:, 1:].cumsum(dim=1)], dim=1)


def trace_path(root: Tensor, fps: float) -> tuple[Tensor, Tensor]:
    """Returns headings ``(B, T)`` in radians and places ``(B, T, 3)`` on the ground in metres.

    The first frame is at the origin. Its heading is 0, and so are all headings of features of the
    world.

    Args:
        root: ``(B, T, 3)``, the channels of the root in their own units; or ``(B, T, 4)``, of
            features relative to the heading.
        fps: frames per second.
    """
    *turns, x, z, _ = root.unbind(-1)
    headings = add_up(turns[0] / fps) if turns else torch.zeros_like(x)
    steps = torch.stack([x, torch.zeros_like(x), z], dim=-1) / fps
    return headings, add_up(turn_vectors(steps, headings))
