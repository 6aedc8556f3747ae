"""Clips of several lengths in one batch ``(B, C, T, ...)``: frames after the end are padding."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_of(lengths: Tensor, length: int) -> Tensor:
    """``(B, length)``, true before ``lengths`` ``(B,)``."""
    return torch.arange(length, device=lengths.device) < lengths[:, None]


def time_mask(x: Tensor, lengths: Tensor) -> Tensor:
    """``mask_of`` the clips of ``x`` ``(B, C, T, ...)``, with an axis of 1 for all others."""
    mask = mask_of(lengths, x.shape[2])
    return mask.view(len(mask), 1, -1, *[1] * (x.dim() - 3))


def zero_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """``(B, C, T, ...)`` with zeros from ``lengths`` ``(B,)`` on."""
    return torch.where(time_mask(x, lengths), x, 0)
