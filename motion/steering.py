"""Encoding so that decoded motion keeps its path.

Features hold velocities and turns. Path and heading are their sums, so the errors of tokens add up,
and the smallest bias leads far away in a long file. Here the errors are fed back, as quantizers of
sound do: motion is encoded and decoded, and what its path and heading lack is added, as velocities
and turns, to the motion that is encoded next. After some rounds the tokens decode to the path of
the original. Only encoding changes: tokens and decoders need to know nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from motion.config import FeatureSpec
from motion.features.heading import turn_vectors
from motion.features.paths import trace_path

# What is fed back is the slow part of the errors: their mean over so many seconds.
SECONDS = 2.0
# An error of the heading counts as much as it moves a point that is so many metres from the root.
LEVER = 0.3
# The error of all other features may grow to so many times the error without feedback.
TOLERANCE = 1.02


def steer(
    motion: Tensor,
    spec: FeatureSpec,
    fps: float,
    std: Tensor,
    reconstruct: Callable[[Tensor], Tensor],
    rounds: int,
) -> Tensor:
    """Returns the motion to encode instead of ``motion``: only its turns and velocities differ.

    It is the best of all rounds: the motion whose reconstruction stays closest to the path and the
    headings of ``motion``, where the other features are about as good as without feedback. So the
    result is ``motion`` itself if feedback does not help.

    Args:
        motion: ``(T, D)``, features with a root, in their own units.
        spec: what the features are.
        fps: frames per second.
        std: ``(D,)``, what an error of each feature is divided by, to compare them.
        reconstruct: encodes and decodes motion ``(T, D)``.
        rounds: how often errors are fed back.
    """
    root = spec.find_root(motion.shape[1])
    moving = slice(root.start, root.stop - 1)  # all but the height
    headings, path = trace(motion[:, root], fps)
    steered = best = motion
    least = allowed = math.inf
    for number in range(rounds + 1):
        decoded = reconstruct(steered)
        decoded_headings, decoded_path = trace(decoded[:, root], fps)
        turned, moved = headings - decoded_headings, path - decoded_path
        away = float((moved.norm(dim=1) + LEVER * turned.abs()).mean())
        errors = (decoded - motion) / std
        errors[:, moving] = 0
        pose = float(errors.square().mean().sqrt())
        if number == 0:
            allowed = TOLERANCE * pose
        if away < least and pose <= allowed:
            least, best = away, steered
        turns, steps = smooth(turned[:, None], fps), smooth(moved, fps)
        velocities = turn_vectors(difference(steps), -decoded_headings)[:, [0, 2]]
        changes = [difference(turns), velocities] if spec.relative else [velocities]
        steered = steered.clone()
        steered[:, moving] += (torch.cat(changes, dim=1) * fps).to(steered)
    return best


def trace(root: Tensor, fps: float) -> tuple[Tensor, Tensor]:
    """Returns headings ``(T,)`` and places ``(T, 3)`` of the channels of a root, on the CPU."""
    headings, path = trace_path(root.cpu().double()[None], fps)
    return headings[0], path[0]


def difference(values: Tensor) -> Tensor:
    """Returns each row of ``(T, C)`` minus the row before; 0 for the first row."""
    return values.diff(dim=0, prepend=values[:1])


def smooth(values: Tensor, fps: float) -> Tensor:
    """Returns weighted means of the rows of ``(T, C)`` around each row, by a Hann window."""
    reach = round(SECONDS * fps / 2)
    weights = torch.hann_window(2 * reach + 3, periodic=False, dtype=values.dtype)[1:-1]
    padded = F.pad(values.T[:, None], (reach, reach), mode="replicate")
    return F.conv1d(padded, (weights / weights.sum())[None, None])[:, 0].T
