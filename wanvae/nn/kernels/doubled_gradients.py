"""3x3 convolutions of doubled images in training, with 4/9 of the multiply-adds in both passes.

The backward pass keeps the small images. It goes through the phases of the forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wanvae.nn.kernels.doubled import convolve_doubled_in_phases, make_phases
from wanvae.nn.kernels.pool import empty
from wanvae.nn.kernels.precision import autocast_dtype, convert, native_dtype
from wanvae.nn.kernels.remaking import sum_over_positions


class DoubledConvolution(torch.autograd.Function):
    """A padded 3x3 convolution of images that are first doubled by repetition."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return convolve_doubled_in_phases(x, weight.to(x.dtype), convert(bias, x.dtype))

    # Apart from ``forward``, because the transforms of torch.func need it so.
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias = inputs
        ctx.save_for_backward(x, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        find = find_gradients_by_pytorch if torch.is_grad_enabled() else find_gradients
        of_x, of_weight = find(grad, x, weight.to(x.dtype))
        of_bias = None
        if ctx.needs_input_grad[2]:
            of_bias = sum_over_positions(grad).to(ctx.bias_dtype)
        return of_x, of_weight.to(weight.dtype), of_bias


def convolve_doubled_with_gradients(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolves as ``convolve_doubled_by_pytorch``, and keeps ``x`` for the backward pass."""
    dtype = autocast_dtype(weight)
    y = DoubledConvolution.apply(x.to(dtype or native_dtype(weight.dtype)), weight, bias)
    return y.to(dtype or weight.dtype)


def find_gradients(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of ``x`` and ``weight``, phase by phase; no gradients of these."""
    height, width = x.shape[2:]
    of_x = torch.zeros_like(x)
    with torch.enable_grad():
        leaf = weight.detach().requires_grad_()
        kernels = make_phases(leaf)
    of_kernels = []
    for (row, column), kernel in kernels.items():
        of_phase = empty((*grad.shape[:2], height + 1, width + 1), x.dtype, x.device).zero_()
        of_phase[:, :, row : row + height, column : column + width] = grad[:, :, row::2, column::2]
        of_images, of_kernel = convolve_backward(of_phase, x, kernel.detach())
        of_x += of_images
        of_kernels.append(of_kernel)
    (of_weight,) = torch.autograd.grad(list(kernels.values()), leaf, of_kernels)
    return of_x, of_weight


def find_gradients_by_pytorch(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of ``x`` and ``weight``; their own gradients pass through it."""
    doubled = F.interpolate(x, scale_factor=2.0, mode="nearest-exact")
    of_doubled, of_weight = convolve_backward(grad, doubled, weight)
    return F.avg_pool2d(of_doubled, 2, divisor_override=1), of_weight


def convolve_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of input and weight of a 2D convolution that pads by one."""
    geometry = (1, 1), (1, 1), (1, 1), False, (0, 0), 1
    gradients = torch.ops.aten.convolution_backward(
        grad, x, weight, None, *geometry, (True, True, False)
    )
    return gradients[0], gradients[1]
