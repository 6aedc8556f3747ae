"""Clips of several lengths in one batch ``(B, C, T, ...)``: frames after the end are padding."""

from __future__ import annotations

import torch
from torch import Tensor


def make_mask(lengths: Tensor, length: int) -> Tensor:
    """``(B, length)``, true before ``lengths`` ``(B,)``."""
    return torch.arange(length, device=lengths.device) < lengths[:, None]


def make_time_mask(x: Tensor, lengths: Tensor) -> Tensor:
    """``make_mask`` the clips of ``x`` ``(B, C, T, ...)``, with an axis of 1 for all others."""
    mask = make_mask(lengths, x.shape[2])
    return mask.view(len(mask), 1, -1, *[1] * (x.dim() - 3))


def zero_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """``(B, C, T, ...)`` with zeros from ``lengths`` ``(B,)`` on."""
    return torch.where(make_time_mask(x, lengths), x, 0)
