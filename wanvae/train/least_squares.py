"""Principal components of channels, and convolutions solved by least squares, on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wanvae.nn import CausalConv

# Positions for each unknown of a fit.
POSITIONS = 100
# What the mean square of the inputs of a fit grows by, which keeps weights small.
RIDGE = 1e-4


def find_components(values: Sequence[Tensor], most: int | None = None) -> tuple[Tensor, Tensor]:
    """Returns principal components of channels, the largest first. No mean is subtracted.

    Args:
        values: ``(B, C, T, H, W)`` of each clip.
        most: how many to return; None is all.

    Returns:
        Rows of length 1, ``(K, C)``, and the mean squares along them, ``(K,)``.
    """
    gram, count = torch.zeros((), dtype=torch.float64), 0
    for x in values:
        vectors = x.movedim(1, -1).flatten(0, -2).double()
        gram, count = gram + vectors.T @ vectors, count + len(vectors)
    squares, columns = torch.linalg.eigh(gram / count)
    return columns.flip(1).T[:most].float(), squares.flip(0)[:most].float()


def project(x: Tensor, rows: Tensor) -> Tensor:
    """Returns ``rows`` times the channels of ``(B, C, T, H, W)``."""
    return torch.einsum("kc,bcthw->bkthw", rows, x)


def solve(
    conv: CausalConv,
    values: Sequence[Tensor],
    goals: Sequence[Tensor],
    generator: torch.Generator,
    count: int = POSITIONS,
) -> tuple[Tensor, Tensor]:
    """Returns the kernel ``(K, C, ...)`` and the bias ``(K,)`` that give goals best.

    Args:
        values: what it sees of each clip, ``(B, C, T, H, W)``.
        goals: what it should give, ``(B, K, T, H, W)``.
        generator: of the positions that count.
        count: positions for each unknown.
    """
    taken = math.ceil(count * conv.weight[0].numel() / len(values))
    gram, moments = torch.zeros(2, dtype=torch.float64)
    for x, goal in zip(values, goals, strict=True):
        wanted = goal.movedim(1, -1)
        positions = wanted.shape[:4]
        chosen = torch.randperm(positions.numel(), generator=generator)[:taken]
        at = torch.unravel_index(chosen, positions)
        rows = F.pad(windows(conv, x)[at].flatten(1), (0, 1), value=1).double()
        gram, moments = gram + rows.T @ rows, moments + rows.T @ wanted[at].double()
    weights = gram.diagonal()[:-1]  # not the bias
    weights += RIDGE * weights.mean()
    solution = torch.linalg.solve(gram, moments).float()
    return solution[:-1].T.unflatten(1, conv.weight.shape[1:]), solution[-1]


def windows(conv: CausalConv, x: Tensor) -> Tensor:
    """Returns what a convolution sees at each position, ``(B, T, H, W, C, ...)``, as a view."""
    seen = F.pad(x, (*conv.padding[-1], *conv.padding[-2], conv.history, 0))
    axes = zip(conv.kernel_size, conv.stride, strict=True)
    for axis, (size, stride) in enumerate(axes, start=5 - conv.ndim):
        seen = seen.unfold(axis, size, stride)
    return seen.movedim(1, 4)
