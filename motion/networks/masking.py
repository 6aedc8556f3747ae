"""Batches of clips of several lengths: each layer sees of a clip what it would see of it alone.

Beyond the end of its clip a frame is padding, which is anything: a convolution is given zeros
there, as at the end of a clip, norms and attention over time leave it out.
"""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor, nn

from motion.networks.resnet import Repeat
from motion.networks.structure import body_of, row_of
from wanvae.errors import UserError
from wanvae.nn import CausalConv, DenseBlock, Downsample, ResConv1DBlock, TimeAttentionBlock
from wanvae.nn.norm import BatchNorm, GroupNorm
from wanvae.nn.resample import Upsample
from wanvae.nn.residual import SequentialResidual


def mask_of(lengths: Tensor, length: int) -> Tensor:
    """``(B, length)``, true before ``lengths`` ``(B,)``."""
    return torch.arange(length, device=lengths.device) < lengths[:, None]


def zero_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """``(B, C, T)`` with zeros from ``lengths`` ``(B,)`` on."""
    return torch.where(mask_of(lengths, x.shape[2])[:, None], x, 0)


@singledispatch
def run_masked(layer: nn.Module, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` ``(B, C, T)``, of which ``lengths`` ``(B,)`` frames count, through a layer.

    Returns its output, anything beyond the end of each clip, and the lengths of that. Layers that
    are neither in a row nor named below treat each position alone.
    """
    row = row_of(layer)
    return (layer(x), lengths) if row is None else run_all(row, x, lengths)


def run_all(layers: tuple[nn.Module, ...], x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    for layer in layers:
        x, lengths = run_masked(layer, x, lengths)
    return x, lengths


@run_masked.register
def _(layer: CausalConv, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    x = zero_padding(x, lengths) if layer.looks_across_time() else x
    return layer(x), lengths // layer.stride[0]


@run_masked.register
def _(layer: Repeat, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    return layer(x), lengths * layer.times


@run_masked.register
def _(layer: Downsample, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    return layer(x), 1 + (lengths - 1) // 2


@run_masked.register
def _(layer: Upsample, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    return layer(x), 1 + 2 * (lengths - 1)


@run_masked.register(ResConv1DBlock)
@run_masked.register(SequentialResidual)
def _(
    layer: ResConv1DBlock | SequentialResidual, x: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    shortcut, _ = run_masked(layer.shortcut, x, lengths)
    y, lengths = run_all(body_of(layer), x, lengths)
    return layer.add(y, shortcut), lengths


@run_masked.register
def _(layer: DenseBlock, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    for part in layer.layers:
        feature, _ = run_masked(part, x, lengths)
        x = torch.cat([x, feature], dim=1)
    return x, lengths


@run_masked.register
def _(layer: TimeAttentionBlock, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    return layer(x, lengths), lengths


@run_masked.register
def _(layer: GroupNorm, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    mask = mask_of(lengths, x.shape[2])[:, None, None]
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (layer.num_groups, -1))
    count = lengths[:, None, None, None] * wide.shape[2]
    mean = torch.where(mask, wide, 0).sum((2, 3), keepdim=True) / count
    centred = wide - mean
    variance = torch.where(mask, centred, 0).square().sum((2, 3), keepdim=True) / count
    normed = (centred * (variance + layer.eps).rsqrt()).flatten(1, 2)
    return (normed * layer.weight[:, None] + layer.bias[:, None]).to(x.dtype), lengths


@run_masked.register
def _(layer: BatchNorm, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    if layer.training:
        raise UserError(
            "batch norm learns the statistics of whole batches and cannot leave padding out: train "
            "on clips of one length, or with another norm"
        )
    return layer(x), lengths
