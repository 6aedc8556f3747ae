"""Normalization layers, built by name."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wanvae.errors import UserError
from wanvae.nn.interval import ALL_TIME, Interval
from wanvae.nn.kernels.dispatch import kernels_for
from wanvae.nn.kernels.precision import wide_dtype
from wanvae.nn.kernels.rms_norm import ScaledNorm
from wanvae.nn.masking import make_time_mask
from wanvae.nn.region import Region, crop_whole, expand_to_whole
from wanvae.nn.streaming import Pointwise, State, Streaming

NormKind = Literal["rms", "layer", "group", "batch", "none"]

LARGEST_GROUP_COUNT = 32


class RMSNorm(ScaledNorm, Pointwise):
    """Wan's norm over channels: ``x / max(||x||, 1e-12) * sqrt(C) * gamma``.

    The norm is computed in at least float32 and has the dtype of ``x``. ``gamma`` is
    ``(C, 1, ...)`` with one 1 for each axis after the channels, as in the official checkpoints.
    """

    def __init__(self, ndim: int, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * ndim))

    def forward(self, x: Tensor) -> Tensor:
        return kernels_for(x).rms_norm(x, self.gamma)


class LayerNorm(Pointwise):
    """Layer norm over the channels of each position, with weight and bias ``(C,)``."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, self.eps)
        return y.movedim(-1, 1)


class NormOverClips(Streaming):
    """A norm with statistics over whole clips, so it is not pointwise."""

    def time_factor(self) -> Fraction:
        return Fraction(1)

    def space_factor(self) -> Fraction:
        return Fraction(1)

    def multiply_adds(self, positions: int, frames: int) -> int:
        return 0


class GroupNorm(NormOverClips, nn.GroupNorm):
    """Group norm over all positions of a clip; it cannot stream."""

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        self.refuse_to_continue(state)
        return crop_whole(nn.GroupNorm.forward(self, x), region), ()

    def input_region(self, region: Region) -> Region:
        return expand_to_whole(region)

    def looks_across_time(self) -> bool:
        return True

    def looks_across_space(self) -> bool:
        return True

    def input_interval(self, interval: Interval) -> Interval:
        return ALL_TIME

    def forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        mask = make_time_mask(x, lengths).unsqueeze(1)
        wide = x.to(wide_dtype(x)).unflatten(1, (self.num_groups, -1))
        axes = tuple(range(2, wide.dim()))
        values_of_frame = wide[0, 0].numel() // wide.shape[3]
        count = (lengths * values_of_frame).view(-1, *[1] * (wide.dim() - 1))
        mean = torch.where(mask, wide, 0).sum(axes, keepdim=True) / count
        centred = wide - mean
        variance = torch.where(mask, centred, 0).square().sum(axes, keepdim=True) / count
        normed = (centred * (variance + self.eps).rsqrt()).flatten(1, 2)
        shape = -1, *[1] * (x.dim() - 2)
        return (normed * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype), lengths


class BatchNorm(NormOverClips, nn.modules.batchnorm._BatchNorm):
    """Batch norm of any rank. In evaluation its statistics are fixed, so it streams and tiles."""

    def train(self, mode: bool = True) -> BatchNorm:
        """Sets training or evaluation mode. A frozen norm keeps its statistics in both."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def step(self, x: Tensor, state: State, region: Region | None = None) -> tuple[Tensor, State]:
        if self.looks_across_time():
            self.refuse_to_continue(state)
        return nn.modules.batchnorm._BatchNorm.forward(self, x), ()

    def input_region(self, region: Region) -> Region:
        return region

    def looks_across_time(self) -> bool:
        return self.training

    def input_interval(self, interval: Interval) -> Interval:
        return interval

    def forward_masked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            raise UserError(
                "batch norm learns the statistics of whole batches and cannot leave padding out: "
                "train on clips of one length, or with another norm"
            )
        return self(x), lengths

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 3:
            raise UserError(f"expected (B, C, ...) with at least one axis, got {input.shape}")


def make_norm(kind: NormKind, ndim: int, dim: int, eps: float = 1e-5) -> nn.Module:
    """Returns a norm over ``dim`` channels for inputs of rank ``ndim``; "rms" ignores ``eps``."""
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
