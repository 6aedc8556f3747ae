"""Clips of several lengths in one batch ``(B, C, T, ...)``: frames after the end are padding."""

from __future__ import annotations

import torch
from torch import Tensor


def make_mask(lengths: Tensor, length: int) -> Tensor:
    """Returns a mask ``(B, length)``, true for frames before ``lengths`` ``(B,)``."""
    return torch.arange(length, device=lengths.device) < lengths[:, None]


def make_time_mask(x: Tensor, lengths: Tensor) -> Tensor:
    """Returns a mask ``(B, 1, T, 1, ...)`` of the frames of clips ``x`` ``(B, C, T, ...)``."""
    mask = make_mask(lengths, x.shape[2])
    return mask.view(len(mask), 1, -1, *[1] * (x.dim() - 3))


def zero_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """Returns clips ``(B, C, T, ...)`` with zeros from frame ``lengths`` ``(B,)`` on."""
    return torch.where(make_time_mask(x, lengths), x, 0)
