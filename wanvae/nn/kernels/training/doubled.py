"""3x3 convolutions of doubled images in training, with 4/9 of the multiply-adds in both passes.

The backward pass keeps the small images. It goes through the phases of the forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wanvae.nn.kernels.doubled import convolve_doubled_in_phases, make_phases
from wanvae.nn.kernels.pool import empty
from wanvae.nn.kernels.precision import computing_dtype, convert, output_dtype
from wanvae.nn.kernels.training.gradients import find_gradients_of_convolution
from wanvae.nn.kernels.training.remaking import sum_over_positions

# Stride, padding and dilation, also of each phase.
GEOMETRY = (1, 1), (1, 1), (1, 1)


class DoubledConvolution(torch.autograd.Function):
    """A padded 3x3 convolution of images that are first doubled by repetition."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return convolve_doubled_in_phases(x.to(dtype), weight.to(dtype), convert(bias, dtype))

    # Apart from ``forward``, because the transforms of torch.func need it so.
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, ctx.dtype = inputs
        ctx.save_for_backward(x, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        find = find_gradients_by_pytorch if torch.is_grad_enabled() else find_gradients
        wanted = ctx.needs_input_grad[:2]
        of_x, of_weight = find(grad, x.to(ctx.dtype), weight.to(ctx.dtype), wanted)
        of_bias = None
        if ctx.needs_input_grad[2]:
            of_bias = sum_over_positions(grad).to(ctx.bias_dtype)
        of_x = None if of_x is None else of_x.to(x.dtype)
        of_weight = None if of_weight is None else of_weight.to(weight.dtype)
        return of_x, of_weight, of_bias, None


def convolve_doubled_with_gradients(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolves as ``convolve_doubled_by_pytorch``, and keeps ``x`` alone for the backward pass."""
    x = x.to(output_dtype(weight))
    y = DoubledConvolution.apply(x, weight, bias, computing_dtype(weight))
    return y.to(output_dtype(weight))


def find_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the gradients of ``x`` and ``weight`` where ``wanted``; no gradients of these."""
    height, width = x.shape[2:]
    of_x = torch.zeros_like(x) if wanted[0] else None
    with torch.enable_grad():
        leaf = weight.detach().requires_grad_()
        phases = [*make_phases(leaf)]
    of_kernels = []
    for row, column, kernel in phases:
        of_phase = empty((*grad.shape[:2], height + 1, width + 1), x.dtype, x.device).zero_()
        of_phase[:, :, row : row + height, column : column + width] = grad[:, :, row::2, column::2]
        of_images, of_kernel, _ = find_gradients_of_convolution(
            of_phase, x, kernel.detach(), *GEOMETRY, (*wanted, False)
        )
        if of_x is not None and of_images is not None:
            of_x += of_images
        of_kernels.append(of_kernel)
    if not wanted[1]:
        return of_x, None
    return of_x, torch.autograd.grad([kernel for *_, kernel in phases], leaf, of_kernels)[0]


def find_gradients_by_pytorch(
    grad: Tensor, x: Tensor, weight: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Returns what ``find_gradients`` does, by PyTorch; their own gradients pass through it."""
    doubled = F.interpolate(x, scale_factor=2.0, mode="nearest-exact")
    of_doubled, of_weight, _ = find_gradients_of_convolution(
        grad, doubled, weight, *GEOMETRY, (*wanted, False)
    )
    of_x = None if of_doubled is None else F.avg_pool2d(of_doubled, 2, divisor_override=1)
    return of_x, of_weight
