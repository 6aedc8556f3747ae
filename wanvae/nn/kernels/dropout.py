"""Dropout before a residual addition, in training on CPUs.

PyTorch draws a number in float64 for each value, which takes half as long as a small convolution.
Here 16 random bits decide, so the probability is right to 1 / 65536. A byte is kept for each value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wanvae.nn.kernels.convolution import EXACT_DTYPES
from wanvae.nn.kernels.pointwise import CPU_BLOCK, PointwiseFunction, add

# Random numbers of 16 bits, four of which are drawn as one of 64 bits.
LOWEST, HIGHEST = -(2**15), 2**15 - 1
TOGETHER = 4
LOWEST_TOGETHER = -(2**63)


def add_dropped(y: Tensor, pointwise: Sequence[PointwiseFunction], shortcut: Tensor) -> Tensor:
    """Returns ``pointwise(y) + shortcut``, faster than ``add`` if ``pointwise`` is dropout."""
    if len(pointwise) != 1 or not isinstance(dropout := pointwise[0], nn.Dropout):
        return add(y, pointwise, shortcut)
    same = y.shape == shortcut.shape and y.dtype == shortcut.dtype and y.dtype in EXACT_DTYPES
    if not (same and dropout.training and 0 < dropout.p < 1 and is_dense(y)):
        return add(y, pointwise, shortcut)
    mask, scale = draw_mask(y, dropout.p)
    return DropAndAdd.apply(y, shortcut, mask, scale)


def draw_mask(y: Tensor, probability: float) -> tuple[Tensor, float]:
    """Returns which values to keep, as 0 or 1 in uint8, and the factor of the values kept."""
    least = min(HIGHEST, max(LOWEST + 1, LOWEST + round(probability * 2**16)))
    mask = torch.empty_like(y, dtype=torch.uint8)
    in_memory = flatten(mask)
    for block in cut_into_blocks(y):
        some = in_memory[block]
        drawn = torch.empty(-(-len(some) // TOGETHER), dtype=torch.long, device=y.device)
        drawn.random_(LOWEST_TOGETHER, None)
        # 1 where the number is at least ``least``; a comparison takes ten times as long.
        kept = drawn.view(torch.int16)[: len(some)].clamp_(least - 1, least).sub_(least - 1)
        some.copy_(kept)
    return mask, 2**16 / (HIGHEST + 1 - least)


class DropAndAdd(torch.autograd.Function):
    """``y * mask * scale + shortcut``; ``y`` is dense."""

    @staticmethod
    def forward(y: Tensor, shortcut: Tensor, mask: Tensor, scale: float) -> Tensor:
        out = torch.empty_like(y)
        tensors = [flatten(each) for each in (in_order_of(y, shortcut), y, mask, out)]
        for block in cut_into_blocks(y):
            added, given, kept, written = (each[block] for each in tensors)
            torch.addcmul(added, given, kept.to(y.dtype), value=scale, out=written)
        return out

    # Apart from ``forward``, because the transforms of torch.func need it so.
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, mask, ctx.scale = inputs
        ctx.save_for_backward(mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return grad * mask * ctx.scale, grad, None, None
        of_y = torch.empty_like(mask, dtype=grad.dtype)
        tensors = [flatten(each) for each in (in_order_of(mask, grad), mask, of_y)]
        for block in cut_into_blocks(mask):
            given, kept, written = (each[block] for each in tensors)
            torch.mul(given, kept.to(grad.dtype).mul_(ctx.scale), out=written)
        return of_y, grad, None, None


def cut_into_blocks(x: Tensor) -> Iterator[slice]:
    """Yields slices of the values of ``x`` in memory."""
    length = CPU_BLOCK * torch.get_num_threads()
    for start in range(0, x.numel(), length):
        yield slice(start, start + length)


def axes_in_memory(x: Tensor) -> list[int]:
    """Returns the axes of ``x``, the outermost in memory first."""
    return sorted(range(x.dim()), key=x.stride, reverse=True)


def is_dense(x: Tensor) -> bool:
    """Returns whether the values of ``x`` fill a block of memory, in any order of axes."""
    return x.permute(axes_in_memory(x)).is_contiguous()


def flatten(x: Tensor) -> Tensor:
    """Returns the values of a dense ``x`` in the order of the memory, a view."""
    return x.permute(axes_in_memory(x)).view(-1)


def in_order_of(model: Tensor, x: Tensor) -> Tensor:
    """Returns ``x`` with its values in the order of the memory of ``model``."""
    return x if x.stride() == model.stride() else torch.empty_like(model, dtype=x.dtype).copy_(x)
