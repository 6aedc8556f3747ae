"""Normalization layers, built by name."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wanvae.errors import UserError
from wanvae.nn.kernels.dispatch import kernels_for
from wanvae.nn.region import Region, crop_whole, whole_of
from wanvae.nn.streaming import State, Streaming

NormKind = Literal["rms", "layer", "group", "batch", "none"]

LARGEST_GROUP_COUNT = 32


class RMSNorm(nn.Module):
    """Wan's norm over channels: ``x / max(||x||, 1e-12) * sqrt(C) * gamma``.

    The norm is computed in at least float32 and has the dtype of ``x``. ``gamma`` is
    ``(C, 1, ...)`` with one 1 for each axis after the channels, as in the official checkpoints.
    """

    def __init__(self, ndim: int, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * ndim))

    def forward(self, x: Tensor) -> Tensor:
        return kernels_for(x).rms_norm(x, self.gamma)


class LayerNorm(nn.Module):
    """Layer norm over the channels of each position, with weight and bias ``(C,)``."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, self.eps)
        return y.movedim(-1, 1)


class GroupNorm(Streaming, nn.GroupNorm):
    """Group norm over all positions of a clip; it cannot stream."""

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        self.refuse_to_continue(state)
        return crop_whole(nn.GroupNorm.forward(self, x), region), ()

    def input_region(self, region: Region) -> Region:
        return whole_of(region)

    def looks_across_time(self) -> bool:
        return True

    def looks_across_space(self) -> bool:
        return True


class BatchNorm(Streaming, nn.modules.batchnorm._BatchNorm):
    """Batch norm of any rank; in evaluation its statistics are fixed, and it streams and tiles."""

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        if self.looks_across_time():
            self.refuse_to_continue(state)
        return nn.modules.batchnorm._BatchNorm.forward(self, x), ()

    def input_region(self, region: Region) -> Region:
        return region

    def looks_across_time(self) -> bool:
        return self.training

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 3:
            raise UserError(f"expected (B, C, ...) with at least one axis, got {input.shape}")


def make_norm(kind: NormKind, ndim: int, dim: int, eps: float = 1e-5) -> nn.Module:
    """A norm over ``dim`` channels of a rank ``ndim`` input; ``eps`` does not concern "rms"."""
    if kind == "rms":
        return RMSNorm(ndim, dim)
    if kind == "layer":
        return LayerNorm(dim, eps)
    if kind == "group":
        return GroupNorm(math.gcd(LARGEST_GROUP_COUNT, dim), dim, eps)
    if kind == "batch":
        return BatchNorm(dim, eps)
    if kind == "none":
        return nn.Identity()
    raise UserError(f"norm must be one of {', '.join(get_args(NormKind))}, not {kind!r}")
